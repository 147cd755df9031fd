"""What a decode produced, what it cost, and how it went."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Account:
    """Cost of one sequence.

    Attributes:
        steps: decoding steps; of particles, those of the longest trajectory.
        nfe_forward: forwards of the whole canvas that were run. A step may do without
            one (nothing had changed, or a lookahead had shown it), and take several.
        n_backward: backward passes, of whatever size.
        flop_equiv: cost in forwards of the whole canvas: forwards, and rows that were run
            forward or backward on their own as a share of the canvas.
        seconds: wall time; a batch's time is shared equally by its rows.
    """

    steps: int = 0
    nfe_forward: float = 0.0
    n_backward: float = 0.0
    flop_equiv: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.steps} steps, {self.nfe_forward:.0f} forwards, "
            f"{self.n_backward:.0f} backwards, cost {self.flop_equiv:.1f} forwards, "
            f"{self.seconds:.2f} s"
        )

    def add(self, other: Account) -> None:
        """Add what another account holds."""
        self.steps += other.steps
        self.nfe_forward += other.nfe_forward
        self.n_backward += other.n_backward
        self.flop_equiv += other.flop_equiv
        self.seconds += other.seconds


@dataclass(frozen=True)
class StepRecord:
    """One step of one sequence, on the CPU; per-position tensors follow ``positions``.

    Attributes:
        positions: int64 (P,), the masked positions before the step.
        entropy: (P,), nats.
        scores: (P,), what the sampler ranked by.
        parts: what the scores were made of, by name.
        revealed: int64 (b,), positions that were written, and tokens: what with.
        remasked: int64 (r,), positions whose tokens were taken back; by proofreading after what
            was revealed, which may be among them.
    """

    positions: Tensor
    entropy: Tensor
    scores: Tensor
    parts: dict[str, Tensor]
    revealed: Tensor
    tokens: Tensor
    remasked: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


@dataclass
class Item:
    """One decoded sequence: its ids (L,), cost and, if asked for, trajectory.

    Attributes:
        end: the length up to and including a stop pattern, if one ended the decode; what
            lies behind it may still be masked.
        final: for ``on_step``: how many ids from the start on will not change any more.
            Where tokens may be taken back these are the blocks that are done; where a
            sequence has several particles, none before the end.
        error: what ended the decode of this sequence, if failures are kept.
    """

    ids: Tensor
    account: Account = field(default_factory=Account)
    trajectory: list[StepRecord] | None = None
    end: int | None = None
    final: int = 0
    error: Exception | None = None


@dataclass(frozen=True)
class Generation:
    """The result of :func:`boe.generate`, one item per sequence, in order."""

    items: list[Item]

    @property
    def sequences(self) -> list[Tensor]:
        """The ids of each sequence, int64 (L_n,), without padding."""
        return [item.ids for item in self.items]

    @property
    def failed(self) -> list[int]:
        """Which sequences could not be decoded to their end."""
        return [number for number, item in enumerate(self.items) if item.error is not None]

    @property
    def total(self) -> Account:
        """What all sequences cost together."""
        whole = Account()
        for item in self.items:
            whole.add(item.account)
        return whole
