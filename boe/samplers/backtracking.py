"""Going back to a guess that the task's rule, or the model itself, shows to be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from boe.arguments import check_numbers
from boe.samplers.rules import Ruled


@dataclass(frozen=True)
class Backtrack(Ruled):
    """Take back the latest guess when what is written is found to be wrong.

    Ours, for the open question of the TABES paper about verifier signals: chronological
    backtracking, as solvers of constraints do it, with the denoiser as the propagator. A step
    that writes a token of probability below ``sure`` is a guess. What is written is wrong when
    it breaks the rule, or when the model gives ``sure`` or more to tokens that were tried at a
    masked position and found wrong. The sequence then becomes what it was before the latest
    guess, whose least probable token is excluded from then on, for as long as nothing written
    before it is taken back. With no guess left, what was taken for certain is doubted: a tenth
    of the doubt (1 − ``sure``) makes a guess then, and so on. Where one other token has
    ``sure`` of what is left in the place of the excluded, it is written at once, without a
    forward. After ``limit`` returns, or where nothing else could have been written, a sequence
    is decoded to its end as if there were no rule.

    The budget goes back too: a sequence takes more steps than it plans. It sees what no other
    sampler here sees: compare it with others that have it.

    Attributes:
        limit: how often a sequence goes back at most.
        sure: the probability from which on a token counts as certain.
    """

    limit: int = 30
    sure: float = 0.95

    name: ClassVar[str] = "backtrack"

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")
        if not 0.0 < self.sure <= 1.0:
            raise ValueError(f"sure must be in (0, 1], got {self.sure}")
