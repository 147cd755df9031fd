"""What the budget asks of a step whose predecessors revealed more than it planned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from boe.samplers.step import Clock


@dataclass(frozen=True)
class Deadline:
    """The budget's plan as a deadline: it says by when tokens are written, and no more.

    Ours. A count reveals more than the plan wherever it finds more that is safe, but without
    a deadline every step after that is still filled up to its own share of the plan, with
    tokens that nothing forces yet. With one, step k of a block asks for what is missing from
    the first k shares, and for one token at least. A decode takes at most as many steps as
    the plan has, as it does without, and mostly a few more than without.
    """

    name: ClassVar[str] = "deadline"

    def share(self, clock: Clock) -> int:
        """How many tokens the step must reveal."""
        return max(1, clock.due(early=0.0))
