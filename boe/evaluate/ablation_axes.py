"""What an ablation varies: options of BoE, and the other parts of a strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boe import defaults
from boe.samplers import BoE, Proofread, Strategy, sampler_from, strategy_from
from boe.samplers.boe_options import BETWEEN
from boe.samplers.candidates import CANDIDATE_RULES
from boe.samplers.quadrature import QUADRATURES
from boe.samplers.steered_rows import ACTIVE_SETS, PROBE_SETS
from boe_kernels.tis_scores import GATES, NORMALISATIONS


@dataclass(frozen=True)
class Axis:
    """Values that one option is set to, everything else being the base's.

    Attributes:
        name: of the option, or of the group of options.
        title: for people.
        changes: per label what differs: options of BoE, and parts of the strategy by the
            names in :data:`PARTS`.
    """

    name: str
    title: str
    changes: Mapping[str, Mapping[str, Any]]


def _options(name: str, title: str, values: Sequence[Any]) -> Axis:
    return Axis(name, title, {_label(value): {name: value} for value in values})


def _label(value: Any) -> str:
    plain = {None: "none", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else str(value)


PARTS = (
    *("which", "count", "deadline", "cache", "remask", "tokens", "verifier", "backtrack"),
    "proofread",
)
"""Fields of a :class:`boe.Strategy` that an axis can change, beside BoE's options."""


def _parts(spec: str, names: Sequence[str]) -> dict[str, Any]:
    """The fields ``names`` of the strategy that ``spec`` specifies."""
    strategy = strategy_from(spec)
    return {name: getattr(strategy, name) for name in names}


_COUNTS = (
    *("eb", "eb:along=entropy", "threshold:value=0.99", "overlap", "overlap:floor=0.99"),
    *("overlap+deadline", "overlap:floor=0.99+deadline", defaults.SAMPLER),
)

AXES: tuple[Axis, ...] = (
    _options("gate", "confidence gate", GATES),
    Axis(
        "anti-collapse",
        "anti-collapse penalty",
        {
            "none": {"penalty": 0.0},
            "λ 0.2, h 0.3": {"penalty": 0.2, "floor": 0.3},
            "λ 1, h 1": {"penalty": 1.0, "floor": 1.0},
        },
    ),
    _options("active", "active rows (all: dense instead of sparse)", ACTIVE_SETS),
    _options("rho", "candidate fraction ρ", (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)),
    _options("alpha", "where the gradient is taken, α", (0.0, 0.25, 0.5, 0.75, 1.0)),
    _options("context", "context at α > 0", ("frozen", "full")),
    _options("probes", "probe set", PROBE_SETS),
    _options("max_probes", "probes kept", (None, 4, 16)),
    _options("candidates", "prefilter", CANDIDATE_RULES),
    _options("normalise", "normalisation", NORMALISATIONS),
    _options("top_k", "tokens in a soft write", (None, 1, 4, 16)),
    _options("tolerance", "tolerance", (None, 0.0, 0.01, 0.05, 0.2)),
    _options("sure", "no gradient where the greedy choice is", (None, 0.9, 0.99, 0.999)),
    _options("certainty", "weight κ of certainty", (0.0, 1.0, 8.0, 32.0)),
    Axis(
        "every",
        "scoring only every s steps",
        {
            "1": {"every": 1},
            **{
                f"{s}, then by {between}": {"every": s, "between": between}
                for s in (2, 4)
                for between in BETWEEN
            },
        },
    ),
    _options("quadrature", "points of the gradient", QUADRATURES),
    Axis(
        "lookahead",
        "a lookahead among the best-scored",
        {
            "none": {"lookahead": 0, "close": None},
            "3": {"lookahead": 3, "close": None},
            "3, where closer than 0.5": {"lookahead": 3, "close": 0.5},
        },
    ),
    Axis(
        "which",
        "who ranks",
        {
            "the base's own": {},
            **{name: _parts(name, ["which"]) for name in ("confidence", "margin", "entropy")},
        },
    ),
    Axis(
        "count",
        "how many, and by when",
        {
            "as the budget plans": {"count": None, "deadline": None},
            **{spec: _parts(spec, ["count", "deadline"]) for spec in _COUNTS},
        },
    ),
    Axis(
        "cache",
        "keys and values kept",
        {
            "none": {"cache": None},
            **{spec: _parts(f"boe+{spec}", ["cache"]) for spec in ("delayed:refresh=4", "delayed")},
        },
    ),
    Axis(
        "proofread",
        "what is written, read again",
        {
            "never": {"proofread": None},
            "once at most": {"proofread": Proofread(rounds=1)},
            "3 times at most": {"proofread": Proofread()},
        },
    ),
)
"""The paper's Table 5 (gate, anti-collapse, active rows, ρ), our own choices, and what else a
strategy is made of."""


def usual_axes(base: str) -> tuple[Axis, ...]:
    """Those of :data:`AXES` that can make a difference: for a strategy without BoE its parts."""
    strategy = strategy_from(base)
    axes = AXES
    if not isinstance(strategy.which, BoE):
        axes = tuple(axis for axis in axes if axis.name in PARTS)
    if strategy.count is not None and strategy.count.fills:
        axes = tuple(axis for axis in axes if axis.name != "which")
    return axes


def custom_axis(name: str, values: Sequence[str]) -> Axis:
    """An axis over one option of BoE, or one part of the strategy (:data:`PARTS`).

    Args:
        values: as in a specification string; of a part, its specification, or "none".

    Raises:
        ValueError: there is no such option or part, or a value does not fit it.
    """
    if name in PARTS:
        changes = {value: {name: _part(name, value)} for value in values}
        if name == "count" and "none" in changes:
            # A deadline says nothing without a count.
            changes["none"]["deadline"] = None
        return Axis(name, name, changes)
    return Axis(name, name, {value: {name: _value(name, value)} for value in values})


# Whether a value goes with the base is for variants_of to find out: any that is one goes with
# one of these, first of all the one that most go with.
_TOLERANT = (
    *("boe:preset=paper,active=all", "boe:preset=paper"),
    *("boe:active=bridges", "boe:every=2", "boe:lookahead=2"),
)


def _value(name: str, value: str) -> Any:
    """The value of an option of BoE that a text stands for."""
    errors: list[ValueError] = []
    for tolerant in _TOLERANT:
        if f"{name}=" in tolerant:
            continue
        try:
            return getattr(sampler_from(f"{tolerant},{name}={value}"), name)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _part(name: str, value: str) -> Any:
    """One part of a strategy from its specification."""
    if name == "which":
        policy = sampler_from(value)
        if isinstance(policy, Strategy):
            raise ValueError(f"which must be a policy alone, got {value!r}")
        return policy
    if value == "none":
        return None
    # A deadline needs a count beside it.
    strategy = strategy_from(f"boe+eb+{value}" if name == "deadline" else f"boe+{value}")
    part = getattr(strategy, name)
    if part is None:
        raise ValueError(f"{value!r} is no {name} of a strategy")
    return part
