"""MaskGIT's decoding: sampled tokens, noisy confidence, a cosine schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from boe.arguments import check_numbers
from boe.samplers.base import Sampler, Scores, Step
from boe.samplers.budgets import Cosine


@dataclass(frozen=True)
class MaskGIT(Sampler):
    """MaskGIT (Chang et al., 2022).

    Tokens are drawn at temperature 1. The score of a drawn token is
    ln p + ``choice_temperature``·(1 − k/T)·Gumbel in step k of T. The plan is
    :class:`boe.Cosine`'s. (The original never leaves less than one mask before the last
    step, and waits where one is left early; here that one is revealed, which saves forwards
    and changes no distribution.)

    Attributes:
        choice_temperature: 1 is the default of the authors' function, 4.5 their setting
            for images of a class; 0 ranks by confidence alone.
        steps: T per block; as many as the budget plans if ``None``. The authors' function
            has 12.
    """

    choice_temperature: float = 1.0
    steps: int | None = None

    name: ClassVar[str] = "maskgit"
    temperature: ClassVar[float] = 1.0
    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_numbers(self)
        if not (self.choice_temperature >= 0.0 and math.isfinite(self.choice_temperature)):
            raise ValueError(
                f"choice_temperature must be finite and not negative, got {self.choice_temperature}"
            )
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def plan(self, planned: tuple[int, ...]) -> tuple[int, ...]:
        return Cosine(self.steps or len(planned)).plan(sum(planned))

    def score(self, step: Step) -> Scores:
        log_p = step.proposal_probability.double().log()
        done = step.of_rows(lambda clock: (clock.index + 1) / (self.steps or clock.planned))
        noise = self.choice_temperature * (1.0 - done.clamp_max(1.0)) * step.gumbel(step.masked)
        return Scores(log_p + noise, {"log_probability": log_p})
