"""What BoE's options may be, and which of them contradict each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from boe.arguments import check_numbers, refuse_unused
from boe.denoisers.base import CONTEXTS, ENGINES
from boe.samplers.candidates import check_candidates
from boe.samplers.quadrature import POINT, QUADRATURES
from boe.samplers.steered_rows import ACTIVE_SETS, BRIDGE_RULES, PROBE_SETS
from boe_kernels.tis_scores import GATES, NORMALISATIONS

if TYPE_CHECKING:
    from boe.samplers.boe import BoE

GUIDANCE_GRADIENTS = ("conditional", "combined")
BETWEEN = ("last", "confidence")


def check_options(config: BoE) -> None:
    """Raises ValueError or, where a number is none, TypeError, naming the option, unless all may
    be what they are."""
    for field, choices in (
        ("probes", PROBE_SETS),
        ("active", ACTIVE_SETS),
        ("bridge_rule", BRIDGE_RULES),
        ("quadrature", QUADRATURES),
        ("context", CONTEXTS),
        ("gate", GATES),
        ("normalise", NORMALISATIONS),
        ("engine", ENGINES),
        ("guidance_gradient", GUIDANCE_GRADIENTS),
        ("between", BETWEEN),
    ):
        if getattr(config, field) not in choices:
            raise ValueError(
                f"{field} must be one of {', '.join(choices)}, got {getattr(config, field)!r}"
            )
    check_numbers(config)
    check_candidates(config.candidates, config.rho, config.tolerance)
    if not 0.0 <= config.alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {config.alpha}")
    if not 0.0 <= config.bridges <= 1.0:
        raise ValueError(f"bridges must be in [0, 1], got {config.bridges}")
    if config.sure is not None and not 0.0 <= config.sure <= 1.0:
        raise ValueError(f"sure must be in [0, 1], got {config.sure}")
    for field in ("certainty", "penalty", "floor"):
        value = getattr(config, field)
        if not (value >= 0.0 and math.isfinite(value)):
            raise ValueError(f"{field} must be finite and not negative, got {value}")
    for field in ("max_probes", "top_k"):
        value = getattr(config, field)
        if value is not None and value < 1:
            raise ValueError(f"{field} must be at least 1, got {value}")
    for field in ("every", "lookahead_tokens"):
        if getattr(config, field) < 1:
            raise ValueError(f"{field} must be at least 1, got {getattr(config, field)}")
    if config.lookahead != 0 and config.lookahead < 2:
        raise ValueError(
            "lookahead must be 0 or at least 2, so that there is something to compare, "
            f"got {config.lookahead}"
        )
    if config.close is not None and not (config.close >= 0.0 and math.isfinite(config.close)):
        raise ValueError(f"close must be finite and not negative, got {config.close}")
    _refuse_contradictions(config)


def unread(config: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Options that nothing reads, with what they need and what is there instead.

    Args:
        config: a :class:`BoE`, or anything with its attributes.
    """
    if not config.lookahead:
        yield ("close", "lookahead_tokens"), "lookahead, got lookahead=0"
    if not config.penalty:
        yield ("floor", "penalty_anneal"), "penalty > 0, got penalty=0"
    elif not config.floor:
        yield ("penalty",), "floor > 0 (h_max, in nats), got floor=0"
    if config.active != "bridges":
        yield ("bridges", "bridge_rule"), f"active='bridges', got active={config.active!r}"
    if config.every == 1:
        yield ("between",), "every > 1, got every=1"


def _refuse_contradictions(config: BoE) -> None:
    if config.active == "candidates" and config.probes == "complement":
        raise ValueError(
            "the zero-gradient combination: with active='candidates' and "
            "probes='complement' no probe's row is active, so the entropy of every probe is "
            "a constant and every score is exactly 0; use active='candidates_probes'"
        )
    if config.candidates == "all" and config.probes == "complement":
        raise ValueError(
            "candidates='all' leaves no probes in their complement; "
            "use probes='masked' or 'masked_minus_self'"
        )
    if config.active == "bridges" and config.bridge_rule == "hidden_change" and config.alpha == 0.0:
        raise ValueError(
            "bridge_rule='hidden_change' needs alpha > 0: at 0 no hidden state changes"
        )
    if config.quadrature != POINT:
        if config.alpha != 0.5:
            raise ValueError(
                f"alpha={config.alpha} is where quadrature='point' takes the gradient; "
                f"quadrature={config.quadrature!r} has points of its own"
            )
        if config.engine != "replay":
            raise ValueError(
                f"quadrature={config.quadrature!r} needs engine='replay', "
                f"got engine={config.engine!r}"
            )
    if config.lookahead:
        _refuse_lookahead(config)
    for names, why in unread(config):
        refuse_unused(config, names, why)
    if config.guidance_gradient == "combined":
        if config.engine != "replay":
            raise ValueError(
                f"guidance_gradient='combined' needs engine='replay', got engine={config.engine!r}"
            )
        if config.active == "bridges" and config.bridge_rule != "random":
            raise ValueError(
                f"bridge_rule={config.bridge_rule!r} ranks the rows of one branch; with "
                "guidance_gradient='combined' use another active set, or bridge_rule='random'"
            )
    if config.engine != "replay":
        if config.alpha > 0.0 and config.context == "frozen":
            raise ValueError(
                f"context='frozen' at alpha = {config.alpha} needs engine='replay', "
                f"got engine={config.engine!r}; use context='full'"
            )
        if config.active == "bridges" or config.probes == "masked_minus_self":
            raise ValueError(
                "active='bridges' and probes='masked_minus_self' need engine='replay', "
                f"got engine={config.engine!r}"
            )


def _refuse_lookahead(config: BoE) -> None:
    if config.engine != "replay":
        raise ValueError(
            f"lookahead={config.lookahead} runs rows against kept keys and values: it needs "
            f"engine='replay', got engine={config.engine!r}"
        )
    if config.gate != "none" or config.penalty or config.normalise != "none":
        raise ValueError(
            f"lookahead={config.lookahead} compares falls of entropy in nats: it needs "
            f"gate='none', penalty=0 and normalise='none', got gate={config.gate!r}, "
            f"penalty={config.penalty} and normalise={config.normalise!r}"
        )
