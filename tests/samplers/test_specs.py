"""Samplers from their names and options."""

from __future__ import annotations

import pytest

from boe import BoE, Confidence, Entropy, Margin, Random, sampler_from


@pytest.mark.parametrize(
    ("spec", "sampler"),
    [
        ("random", Random()),
        ("confidence", Confidence()),
        ("margin", Margin()),
        ("entropy", Entropy()),
        ("boe", BoE()),
        ("boe:preset=paper", BoE.preset("paper")),
        ("boe:alpha=1,rho=0.5", BoE(alpha=1.0, rho=0.5)),
        (
            "boe:preset=paper,alpha=0.5,active=masked",
            BoE.preset("paper", alpha=0.5, active="masked"),
        ),
        ("boe:tolerance=none,max_probes=7", BoE(tolerance=None, max_probes=7)),
        ("boe:tolerance=0.2,top_k=none", BoE(tolerance=0.2)),
        ("boe:penalty_anneal=true", BoE(penalty_anneal=True)),
        ("boe:penalty_anneal=False", BoE(penalty_anneal=False)),
        ("boe:engine=late,context=full", BoE(engine="late", context="full")),
    ],
)
def test_a_specification_names_a_sampler_and_its_options(spec: str, sampler: object) -> None:
    assert sampler_from(spec) == sampler


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "sampler must be one of random, confidence, margin, entropy, boe, got ''"),
        ("bo", "sampler must be one of .*got 'bo'"),
        ("boe:beta=1", r"boe has no option 'beta=1'; its options: candidates, rho"),
        ("boe:alpha", "boe has no option 'alpha'"),
        ("confidence:alpha=1", "confidence has no option 'alpha=1'; its options: none"),
        ("margin:preset=paper", "margin has no option 'preset=paper'"),
        ("boe:alpha=much", "alpha must be float, got 'much'"),
        ("boe:max_probes=1.5", r"max_probes must be int or NoneType, got '1\.5'"),
        ("boe:rho=none", "rho must be float, got 'none'"),
        ("boe:penalty_anneal=1", "penalty_anneal must be bool, got '1'"),
        ("boe:preset=best", "preset must be one of default, paper, got 'best'"),
        ("boe:alpha=2", r"alpha must be in \[0, 1\], got 2\.0"),
        ("boe:active=candidates", "the zero-gradient combination"),
    ],
)
def test_a_wrong_specification_is_refused_with_the_reason(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_from(spec)


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        sampler_from("boe:alpha=0,alpha=1")
