"""P2: path planning, which keeps the best tokens and masks the rest again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from boe.arguments import check_numbers
from boe.canvas import Canvas
from boe.denoisers.base import Denoiser
from boe.samplers.base import Clock, Move, Policy, Scores, Step, StepCost, top_positions
from boe_kernels import EntropyStats, entropy_stats

SCORES = ("probability", "margin", "random")


@dataclass(frozen=True)
class P2(Policy):
    """Path planning (Peng et al., 2025).

    In step i of T every free position gets a token from the prediction and a score; the
    ⌊n·(1 − i/T)⌋ positions of the lowest score are masked, those among the others that were
    masked are filled in. Observed tokens stay as they are, but are scored by the token
    that would be written now. T forwards a block, whatever the tokens.

    Attributes:
        eta: factor on the scores of observed tokens. Log-probabilities are below 0: above
            1 more is masked again, at 0 nothing is. Margins are above 0, and it is the other
            way round.
        score: "probability", the log-probability of the new token under the noised logits
            (the plain ones at temperature 0); "margin", the lead of the largest
            log-probability over the second; "random", ln of uniform noise, which with
            eta = 0 is ancestral sampling.
        steps: T per block; as many as the budget plans if ``None``.
        planner: another denoiser, whose log-probabilities of the new tokens score the
            observed ones, in a forward on the canvas of new tokens. ``None``: the same
            prediction does.
    """

    eta: float = 1.0
    score: str = "probability"
    steps: int | None = None
    planner: Denoiser | None = None

    name: ClassVar[str] = "p2"
    temperature: ClassVar[float] = 1.0
    takes_back: ClassVar[bool] = True
    noised: ClassVar[bool] = True
    reuses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_numbers(self)
        if not (self.eta >= 0.0 and math.isfinite(self.eta)):
            raise ValueError(f"eta must be finite and not negative, got {self.eta}")
        if self.score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {self.score!r}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.planner is not None and self.score == "random":
            raise ValueError("score='random' does not read the planner's prediction")

    def duration(self, plan: tuple[int, ...]) -> int:
        return self.steps or len(plan)

    def observes(self, clock: Clock) -> bool:
        return True

    def move(self, step: Step) -> Move:
        observed = step.at_slots(step.observed) & (step.positions >= 0) & ~step.masked
        free = step.eligible | observed
        score = self._score(step)
        cost = None
        if self.planner is not None:
            score = torch.where(observed, self._planned(step, self.planner), score)
            share = observed.any(dim=1).double()
            cost = StepCost.of_forwards(share)
        score = torch.where(observed, score * self.eta, score)
        kept = step.of_rows(lambda c: c.masks - c.masks * max(c.total - c.index - 1, 0) // c.total)
        best = top_positions(score, free, kept.long().squeeze(1))
        return Move(
            reveal=step.eligible & best,
            tokens=step.proposal,
            scores=Scores(score, cost=cost),
            remask=step.on_canvas(observed & ~best),
        )

    def _score(self, step: Step) -> Tensor:
        if self.score == "random":
            noise = step.uniform(step.positions >= 0)
            return noise.clamp_min(torch.finfo(torch.float64).tiny).log()
        if self.score == "margin":
            return _lead(step.stats)
        assert step.noised_log_probability is not None
        return step.noised_log_probability

    def _planned(self, step: Step, planner: Denoiser) -> Tensor:
        """The same score by the planner, on the canvas of proposals."""
        ids = step.written(step.canvas.ids, step.positions >= 0, step.proposal)
        logits = planner.predict(Canvas(ids, step.canvas.lengths), step.positions).logits
        stats = entropy_stats(logits)
        if self.score == "margin":
            return _lead(stats)
        chosen = logits.gather(-1, step.proposal.unsqueeze(-1)).squeeze(-1)
        return (chosen - stats.logsumexp).double()


def _lead(stats: EntropyStats) -> Tensor:
    """The largest log-probability minus the second, float64."""
    tiny = torch.finfo(torch.float64).tiny
    return stats.top1.double().log() - stats.top2.double().clamp_min(tiny).log()
