"""Options that came after results were stored leave their keys alone while they are off."""

from __future__ import annotations

import pytest

from boe import BoE, Strategy, sampler_from
from boe.evaluate.running import describe
from boe.samplers import Lookahead, Verifier


@pytest.mark.parametrize(
    ("plain", "spec", "shown"),
    [
        ("boe", "boe:lookahead=3", "lookahead=3"),
        ("boe", "boe:quadrature=gauss", "quadrature='gauss'"),
        ("boe", "boe:lookahead=2,close=0.5", "close=0.5"),
        ("boe", "boe:lookahead=2,lookahead_tokens=1", "lookahead_tokens=1"),
        ("lookahead", "lookahead:context=frozen", "context='frozen'"),
        ("lookahead", "lookahead:joint=true", "joint=True"),
        ("entropy", "entropy+verified", "verifier=Verifier"),
        ("entropy", "entropy+delayed", "cache=DelayedCache(refresh=None)"),
        ("entropy+eb", "entropy+eb+deadline", "deadline=Deadline()"),
    ],
)
def test_a_late_option_is_shown_where_it_is_set_and_nowhere_else(plain, spec, shown) -> None:
    name = shown.partition("=")[0]
    assert f" {name}=" not in describe(plain)
    assert shown in describe(spec)


def test_all_other_fields_are_shown_in_order_as_a_dataclass_shows_them() -> None:
    assert repr(Lookahead(rho=0.5)) == (
        "Lookahead(candidates='confidence', rho=0.5, tolerance=None, tokens=1, chunk=64)"
    )
    assert repr(BoE()).startswith("BoE(candidates='confidence', rho=0.25, tolerance=0.01,")
    assert repr(BoE()).endswith("every=1, between='last')")
    assert repr(Strategy(Lookahead(), verifier=Verifier())).endswith(
        "particles=None, verifier=Verifier(violated=None))"
    )
    assert repr(sampler_from("entropy+eb")).endswith("remask=None, particles=None)")
