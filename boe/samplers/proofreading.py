"""Reading what is written once more, each token as if it alone were missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from boe.arguments import check_numbers
from boe.denoisers.base import CONTEXTS, Context


@dataclass(frozen=True)
class Proofread:
    """Take back what the model would not write again, given everything else.

    When a block is written, the model is asked for each of its tokens in turn with that token
    alone masked: p(x_i | x_∖i). Tokens that it prefers another to become masks again and are
    written one a step, whatever the budget's pace. Nothing is taken from the steps before: a
    token that was certain beside masks may be impossible beside what was written into them, and
    two that were written together may contradict each other.

    The conditional is that of informed correctors (Zhao et al., 2024, arXiv:2407.21243), who
    train a hollow transformer for it. Against a frozen context any denoiser gives an estimate
    of it for one forward and |block|/L of another: the other rows keep keys and values that
    have seen the token.

    A sequence takes more steps than the budget plans. What is written as it had been is not read
    again. Where a sequence ends before its block is written, what stands before the end is read,
    and mended before anything behind it.

    Attributes:
        rounds: how often a block is read at most.
        ratio: a token is taken back where its probability is below this share of the most
            probable one's. Below 1 at temperatures above 0: there a token that is not the
            first choice is no mistake.
        context: "frozen" as above; "full" runs a whole forward for every token, for models
            that cannot be run on some of their rows, or to know exactly.
    """

    rounds: int = 3
    ratio: float = 1.0
    context: Context = "frozen"

    name: ClassVar[str] = "proofread"

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if not 0.0 < self.ratio <= 1.0:
            raise ValueError(f"ratio must be in (0, 1], got {self.ratio}")
        if self.context not in CONTEXTS:
            raise ValueError(f"context must be one of {', '.join(CONTEXTS)}, got {self.context!r}")
