"""What is measured of fidelity, and the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from boe.arguments import check_number
from boe.evaluate.fidelity.scores import (
    candidate_chooser,
    scoring_sampler,
)
from boe.evaluate.fidelity.truth import TruthOptions

SCHEMA = "boe/fidelity/1"
SCORES = (
    "confidence",
    "margin",
    "entropy",
    "random",
    "boe:alpha=0",
    "boe:alpha=0.25",
    "boe:alpha=0.5",
    "boe:alpha=0.5,active=bridges",
    "boe:alpha=0.5,active=all",
    "boe:alpha=1,active=all",
    "boe:preset=paper",
    "lookahead",
)
"""Scores that are compared by default."""


@dataclass(frozen=True)
class FidelityStudy:
    """What is measured.

    Attributes:
        source: where the canvases are from, in words.
        scores: samplers whose ranking is judged; all with the same candidates.
        fractions: of masks.
        canvases: per fraction.
        candidates, rho: how the candidates are chosen among the masks.
        truth: how thoroughly the truth is sought.
    """

    source: str
    scores: tuple[str, ...] = SCORES
    fractions: tuple[float, ...] = (0.25, 0.5, 0.75)
    canvases: int = 8
    candidates: str = "confidence"
    rho: float = 0.25
    seed: int = 0
    truth: TruthOptions = field(default_factory=TruthOptions)

    def __post_init__(self) -> None:
        for name in ("scores", "fractions"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be different, at least one, got {values}")
        if self.canvases < 1:
            raise ValueError(f"canvases must be at least 1, got {self.canvases}")
        for fraction in self.fractions:
            check_number("fractions", fraction)
            if not 0.0 < fraction <= 1.0:
                raise ValueError(f"fractions must be in (0, 1], got {fraction}")
        for spec in self.scores:
            scoring_sampler(spec, self.candidates, self.rho)
        candidate_chooser(self.candidates, self.rho)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FidelityStudy:
        """The study that :meth:`as_json` wrote."""
        lists = {name: tuple(content[name]) for name in ("scores", "fractions")}
        return cls(**{**content, **lists, "truth": TruthOptions(**content["truth"])})


@dataclass(frozen=True)
class ScoreFidelity:
    """One score at one mask fraction; means over canvases with bootstrap 95 % intervals.

    Attributes:
        score: a sampler, or a sampler and which of its parts ("boe [tis]").
        canvases: how many had at least three candidates and a probe.
        spearman, regret: by name of :data:`boe.evaluate.fidelity.truth.TRUTHS`: rank
            correlation inside C, and what the pick gives away
            (:func:`boe.evaluate.fidelity.ranks.regret`).
        cost: mean cost of the step in forwards.
    """

    score: str
    fraction: float
    canvases: int
    spearman: Mapping[str, float]
    spearman_interval: Mapping[str, tuple[float, float]]
    regret: Mapping[str, float]
    cost: float


@dataclass(frozen=True)
class TheoremCheck:
    """Theorem 3.1 at one mask fraction, over all candidates of all canvases.

    Attributes:
        candidates: how many.
        drop: mean true relaxed drop of the probes' entropy, nats.
        remainder: mean |drop − TIS| with TIS at α = 0 and the dense gradient (eq. 14).
        midpoint_remainder: the same with the derivative at α = ½.
        bound: mean M/2, with M estimated on a grid (from below).
        within: share of candidates whose remainder is at most M/2.
        ordered: share of pairs that Corollary 3.2 orders (TIS apart by more than M).
        mass: mean probability of the tokens that were enumerated.
    """

    fraction: float
    candidates: int
    drop: float
    remainder: float
    midpoint_remainder: float
    bound: float
    within: float
    ordered: float
    mass: float


@dataclass(frozen=True)
class Fidelity:
    """The results. ``complete`` is False after an interruption."""

    study: FidelityStudy
    environment: Mapping[str, Any]
    denoiser: str
    complete: bool
    scores: tuple[ScoreFidelity, ...]
    theorem: tuple[TheoremCheck, ...]

    def as_json(self) -> dict[str, Any]:
        """The documented form (docs/command-line.md)."""
        return {
            "schema": SCHEMA,
            "complete": self.complete,
            "study": self.study.as_json(),
            "environment": dict(self.environment),
            "denoiser": self.denoiser,
            "scores": [asdict(score) for score in self.scores],
            "theorem": [asdict(check) for check in self.theorem],
        }


def fidelity_from_json(content: Mapping[str, Any]) -> Fidelity:
    """A stored result.

    Raises:
        ValueError: another schema.
    """
    if content.get("schema") != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA}, got {content.get('schema')!r}")
    scores = []
    for row in content["scores"]:
        intervals = {name: tuple(pair) for name, pair in row["spearman_interval"].items()}
        scores.append(ScoreFidelity(**{**row, "spearman_interval": intervals}))
    return Fidelity(
        FidelityStudy.from_json(content["study"]),
        content["environment"],
        content["denoiser"],
        content["complete"],
        tuple(scores),
        tuple(TheoremCheck(**row) for row in content["theorem"]),
    )
