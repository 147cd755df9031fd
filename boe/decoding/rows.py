"""Sequences being decoded: what the host knows of each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from boe.decoding.records import Item
from boe.samplers.budgets import Budget, plan_of
from boe.samplers.memory import RowMemory
from boe.samplers.pacing import Deadline
from boe.samplers.step import Clock, Ready
from boe.samplers.strategy import Strategy


@dataclass(frozen=True)
class Block:
    """A stretch [start, end) of positions that is decoded before the next.

    Attributes:
        masks: how many masks it had.
        plan: by how many masks each step is to shrink it.
        planned: how many steps the budget plans.
        total: how many steps the policy wants, of which it takes at least ``least``,
            though no mask be left.
        deadline: what a step owes to the plan, if not just its own share.
    """

    start: int
    end: int
    masks: int
    plan: tuple[int, ...]
    planned: int
    total: int
    least: int
    deadline: Deadline | None = None


@dataclass(frozen=True)
class Guess:
    """A write that may have been wrong, and where the row stood before it.

    Attributes:
        position, token: where its least probable token was written, which, and of what
            ``probability``.
        other: the token that is certain there once ``token`` is excluded, if one is.
        masked: bool (L,), the masks before it, the first of which is behind ``prefix`` ids.
        excluded: tokens that were excluded before it, as in :class:`Row`.
        blocks, index, left: as in :class:`Row`.
    """

    position: int
    token: int
    probability: float
    other: int | None
    masked: Tensor
    prefix: int
    excluded: tuple[tuple[int, int], ...]
    blocks: list[Block]
    index: int
    left: int


@dataclass
class Row:
    """One sequence being decoded.

    Attributes:
        item: its ids are those of the last time that the row left the batch.
        number: its place among the sequences.
        key: seeds its random draws, with the step and purpose.
        given: bool (L,), its tokens at the start.
        masks: masks at the start.
        blocks: those not yet done; the first is current.
        index: steps taken in the current block, and left: masks left in it.
        ready: the prediction of its next step, if a forward already showed it.
        memory: what the policy remembers, while the row is out of the batch.
        log_likelihood: Σ ln p of the tokens revealed so far, where it is asked for.
        reports: whether its steps are told to the caller.
        guesses: what can be taken back, the latest last, and returns: how often it was.
        excluded: (position, token) pairs that were tried and found wrong.
        returned: the guess that the last step came back to, if it did.
        readings: how often the current block was proofread, and read: int64 (N,), the tokens
            that were read last.
        until: where the row had ended before tokens were taken back from it, and behind: how
            many masks its block has from there on. These wait until the others are written.
    """

    item: Item
    number: int
    key: str
    given: Tensor
    masks: int
    blocks: list[Block]
    index: int = 0
    left: int = 0
    ready: Ready | None = None
    memory: RowMemory = field(default_factory=dict)
    log_likelihood: float = 0.0
    reports: bool = True
    guesses: list[Guess] = field(default_factory=list)
    returns: int = 0
    excluded: tuple[tuple[int, int], ...] = ()
    returned: Guess | None = None
    readings: int = 0
    read: Tensor | None = None
    until: int | None = None
    behind: int = 0

    def __post_init__(self) -> None:
        self.left = self.blocks[0].masks if self.blocks else 0

    @property
    def done(self) -> bool:
        return not self.blocks

    @property
    def remaining(self) -> float:
        """Masks left over masks at the start."""
        return (self.left + sum(block.masks for block in self.blocks[1:])) / self.masks

    def clock(self) -> Clock:
        """Where the row stands before its next step."""
        block = self.blocks[0]
        change = block.plan[self.index] if self.index < len(block.plan) else max(block.plan)
        clock = Clock(
            index=self.index,
            total=block.total,
            planned=block.planned,
            change=min(change, self.left),
            left=self.left,
            masks=block.masks,
            start=block.start,
            end=block.end,
            plan=block.plan,
        )
        if block.deadline is None:
            return clock
        return replace(clock, change=min(block.deadline.share(clock), self.left))

    @property
    def corrects(self) -> bool:
        """Whether the last step wrote another token in the place of a guess."""
        return self.returned is not None and self.returned.other is not None

    def can_go_back(self, limit: int) -> bool:
        """Whether there is a guess to take back, and fewer than ``limit`` were."""
        return bool(self.guesses) and self.returns < limit

    def go_back(self, sure: float) -> Guess:
        """Stand where the row stood before its latest guess, which is excluded now.

        What had a probability of ``sure`` counts as a guess only if nothing else is left, and
        then with a tenth of the doubt.
        """
        while all(guess.probability >= sure for guess in self.guesses):
            sure = 1.0 - (1.0 - sure) / 10.0
        latest = max(k for k, guess in enumerate(self.guesses) if guess.probability < sure)
        guess = self.returned = self.guesses[latest]
        del self.guesses[latest:]
        self.returns += 1
        self.excluded = (*guess.excluded, (guess.position, guess.token))
        self.blocks, self.index, self.left = guess.blocks, guess.index, guess.left
        return guess

    def advance(self, left: int) -> None:
        """Note a step after which ``left`` masks are left in the current block.

        Raises:
            RuntimeError: the policy has had all its steps, and one more for every mask.
        """
        self.index += 1
        self.left = left
        if left <= self.behind:
            # What came again in front of the old end is no end any more.
            self.until = None
        block = self.blocks[0]
        if left and self.index > max(block.total, block.least) + block.masks:
            raise RuntimeError(
                f"the strategy makes no progress: {left} of {block.masks} masks of sequence "
                f"{self.number} are left after {self.index} steps"
            )
        if left == 0 and self.index >= block.least:
            self.blocks = self.blocks[1:]
            self.index = self.readings = self.behind = 0
            self.read = None
            self.left = self.blocks[0].masks if self.blocks else 0

    def note_reading(self, tokens: Tensor) -> None:
        """Note that these tokens of the current block are proofread."""
        self.readings += 1
        self.read = tokens

    def reopen(self, taken_back: int, behind: int, end: int | None) -> None:
        """Go on with the current block, of whose tokens some are masks again.

        They are written one a step, before those ``behind`` the ``end``, if the row has one.
        """
        block = self.blocks[0]
        pace = max(block.plan)
        rest = (min(pace, behind - done) for done in range(0, behind, pace))
        plan = (*(1,) * taken_back, *rest)
        left, steps = taken_back + behind, len(plan)
        again = replace(block, masks=left, plan=plan, planned=steps, total=steps, least=0)
        self.blocks = [again, *self.blocks[1:]]
        self.index, self.left = 0, left
        self.until, self.behind = end, behind


def blocks_of(
    masked: Tensor,
    budget: Budget,
    block_length: int | None,
    strategy: Strategy,
    from_start: bool = False,
) -> list[Block]:
    """The blocks that hold the masks of ``masked``, bool (L,), each with its plan.

    Blocks are counted from the first mask, or from position 0 if ``from_start``.
    """
    positions = masked.nonzero().flatten().tolist()
    if not positions:
        return []
    first = 0 if from_start else positions[0]
    if block_length is None:
        stretches = {(first, positions[-1] + 1): len(positions)}
    else:
        stretches = {}
        for position in positions:
            start = first + (position - first) // block_length * block_length
            stretch = (start, start + block_length)
            stretches[stretch] = stretches.get(stretch, 0) + 1
    blocks = []
    for (start, end), masks in stretches.items():
        planned = plan_of(budget, masks, len(stretches))
        plan = strategy.plan(planned)
        blocks.append(
            Block(
                start,
                end,
                masks,
                plan,
                planned=len(planned),
                total=strategy.duration(plan),
                least=strategy.least_steps(plan),
                deadline=strategy.deadline,
            )
        )
    return blocks


def pad_flags(flags: list[Tensor], length: int) -> Tensor:
    """bool (B, length) from flags (L,) of any lengths."""
    padded = torch.zeros(len(flags), length, dtype=torch.bool, device=flags[0].device)
    for row, flag in zip(padded, flags, strict=True):
        row[: len(flag)] = flag
    return padded
