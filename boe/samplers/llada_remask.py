"""ReMDM's loop as it is run on LLaDA: take back the least probable tokens, fill in again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from boe.arguments import check_numbers
from boe.samplers.base import Clock, Remask, Step, top_positions


@dataclass(frozen=True)
class LladaLoop(Remask):
    """Reveal most tokens; then, ``loops`` times, take some back and reveal as many.

    Reveal until a share ``ratio`` of the block is written. Then, over and over, one
    forward to take back the k written tokens that are now least probable, and one to
    reveal k masks. Then reveal the rest. Which masks are revealed is the ranking's
    choice: confidence in the original.

    Source: PC-Sampler's baseline (Huang et al., 2025). Its function's defaults are the ones
    here; its scripts use ratio 0.75, 10 loops and 10 tokens, and for Sudoku and Countdown
    ratio 1 and no loops, which is plain confidence.

    Attributes:
        ratio: share of the block's masks revealed before the loops.
        loops: rounds of two forwards.
        tokens: k of the loops; as many as the step before them reveals if ``None``, which
            is fewer than the budget's pace where that step only makes up ``ratio``. The other
            phases go at the budget's pace: the original's is k tokens a step.
    """

    ratio: float = 0.875
    loops: int = 32
    tokens: int | None = None

    name: ClassVar[str] = "remdm-llada"
    home: ClassVar[str] = "confidence"

    def __post_init__(self) -> None:
        check_numbers(self)
        if not 0.0 < self.ratio <= 1.0:
            raise ValueError(f"ratio must be in (0, 1], got {self.ratio}")
        if self.loops < 0:
            raise ValueError(f"loops must not be negative, got {self.loops}")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")

    def plan(self, planned: tuple[int, ...]) -> tuple[int, ...]:
        target = max(1, int(self.ratio * sum(planned)))
        before: list[int] = []
        rest = list(planned)
        while sum(before) < target:
            count = min(rest[0], target - sum(before))
            before.append(count)
            rest[0] -= count
            if not rest[0]:
                rest.pop(0)
        again = min(self.tokens or before[-1], target)
        return (*before, *(-again, again) * self.loops, *rest)

    def observes(self, clock: Clock) -> bool:
        return clock.change < 0

    def pick(self, step: Step) -> Tensor:
        count = step.of_rows(lambda clock: max(-clock.change, 0)).long().squeeze(1)
        ids = step.at_slots(step.canvas.ids)
        own = step.prediction.logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        log_p = own - step.stats.logsumexp
        written = step.at_slots(step.observed) & (step.positions >= 0)
        return step.on_canvas(top_positions(-log_p, written, count))
