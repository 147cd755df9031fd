"""How many tokens to reveal in each step."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass

from boe.arguments import check_whole


class Budget(ABC):
    """A plan of how many tokens each step reveals."""

    @abstractmethod
    def plan(self, masks: int, blocks: int = 1) -> tuple[int, ...]:
        """Tokens per step for one of ``blocks`` blocks that holds ``masks`` masks.

        The numbers are positive and add up to ``masks``.
        """


def plan_of(budget: Budget, masks: int, blocks: int) -> tuple[int, ...]:
    """What ``budget``, which may be anybody's own, plans for a block.

    Raises:
        TypeError, ValueError: it is no plan; the message names the budget.
    """
    name, planned = type(budget).__name__, budget.plan(masks, blocks)
    given = f"{name}.plan(masks={masks}, blocks={blocks}) must return"
    try:
        counts = tuple(operator.index(count) for count in planned)
    except TypeError:
        raise TypeError(f"{given} whole numbers, got {planned!r}") from None
    if sum(counts) != masks or min(counts, default=1) < 1:
        raise ValueError(f"{given} positive numbers that add up to {masks}, got {planned!r}")
    return counts


@dataclass(frozen=True)
class TokensPerStep(Budget):
    """The same number of tokens every step; the last step takes what is left."""

    tokens: int = 1

    def __post_init__(self) -> None:
        check_whole("tokens", self.tokens)

    def plan(self, masks: int, blocks: int = 1) -> tuple[int, ...]:
        whole, rest = divmod(masks, self.tokens)
        return (self.tokens,) * whole + ((rest,) if rest else ())


@dataclass(frozen=True)
class _Steps(Budget):
    """A plan of a number of steps, shared equally between blocks."""

    steps: int

    def __post_init__(self) -> None:
        check_whole("steps", self.steps)

    def share(self, blocks: int) -> int:
        return max(1, self.steps // blocks)


@dataclass(frozen=True)
class FrontLoaded(_Steps):
    """LLaDA's plan: n masks in T steps, ⌊n/T⌋ each and one more in the first n mod T.

    The steps are shared equally between blocks; steps that would reveal nothing are
    left out.
    """

    def plan(self, masks: int, blocks: int = 1) -> tuple[int, ...]:
        steps = self.share(blocks)
        base, extra = divmod(masks, steps)
        return tuple(n for n in (base + (k < extra) for k in range(steps)) if n)


@dataclass(frozen=True)
class Cosine(_Steps):
    """MaskGIT's plan: after step k of T, ⌊n·cos(π/2·k/T)⌋ masks are left.

    Every step reveals at least one token, so short canvases take fewer than T steps.
    """

    def plan(self, masks: int, blocks: int = 1) -> tuple[int, ...]:
        steps = self.share(blocks)
        left, counts = masks, []
        for k in range(1, steps + 1):
            if not left:
                break
            target = math.floor(masks * math.cos(math.pi / 2 * k / steps)) if k < steps else 0
            counts.append(left - min(target, left - 1))
            left -= counts[-1]
        return tuple(counts)
