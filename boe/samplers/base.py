"""What a sampler is: a rule that scores masked positions.

The decoding loop (:mod:`boe.decoding.loop`) owns everything else: the canvas, which
positions are eligible, how many to reveal, what to write, when to stop, what it cost.
Per-position tensors are (B, P): P masked positions per batch row, padded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers.base import Denoiser, Keep, Prediction
from boe_kernels import EntropyStats


@dataclass(frozen=True)
class Step:
    """Everything a sampler may look at in one decoding step.

    Attributes:
        prediction: its ``positions`` are all masked positions, ascending, −1 for padding.
        stats: of the prediction's logits, (B, P).
        proposal: int64 (B, P), the token that would be written.
        proposal_probability: (B, P), its probability at temperature 1.
        eligible: bool (B, P), positions that may be revealed now.
        budget: int64 (B,), how many will be.
        remaining: (B,), masks left over masks at the start.
        generators: one random generator per batch row, fresh in every step.
    """

    denoiser: Denoiser
    canvas: Canvas
    prediction: Prediction
    stats: EntropyStats
    proposal: Tensor
    proposal_probability: Tensor
    eligible: Tensor
    budget: Tensor
    remaining: Tensor
    generators: tuple[torch.Generator, ...]

    @property
    def positions(self) -> Tensor:
        return self.prediction.positions

    @property
    def masked(self) -> Tensor:
        """bool (B, P), False at padding."""
        return self.positions >= 0

    def uniform(self, where: Tensor) -> Tensor:
        """float64 uniform noise where the mask ``where`` (B, N) is set, 0 elsewhere.

        A row's noise does not depend on the other rows of the batch.
        """
        noise = torch.zeros(where.shape, dtype=torch.float64, device=where.device)
        for row, generator in enumerate(self.generators):
            count = int(where[row].sum())
            noise[row, where[row]] = torch.rand(
                count, generator=generator, dtype=torch.float64, device=where.device
            )
        return noise


@dataclass(frozen=True)
class StepCost:
    """What a sampler spent besides the step's own forward, each (B,) float64.

    Attributes:
        forwards: full forwards.
        backwards: backward passes.
        rows: canvas rows that were run forward or backward on their own.
    """

    forwards: Tensor
    backwards: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Scores:
    """The verdict: eligible positions with the largest ``values`` (B, P) are revealed.

    ``parts`` are what the values were made of, by name, for the trajectory record;
    ``scored`` tells which rows, bool (B,), have them: by default all that have a choice.
    """

    values: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    cost: StepCost | None = None
    scored: Tensor | None = None


class Sampler(ABC):
    """A rule that scores masked positions. Subclasses are frozen dataclasses."""

    name: str

    @property
    def keep(self) -> Keep:
        """What the step's prediction must keep for this sampler."""
        return "nothing"

    @abstractmethod
    def score(self, step: Step) -> Scores:
        """Score the masked positions of ``step``; ties go to the lowest position."""


def top_positions(rank: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """bool (B, P): the ``count`` (B,) members of ``among`` with the largest rank.

    Ties go to the lowest position.
    """
    order = rank.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    # Members that rank at −∞ must still precede the positions that are no members.
    order = order.gather(1, (~among).gather(1, order).to(torch.int8).argsort(dim=1, stable=True))
    place = torch.arange(rank.shape[1], device=rank.device)
    taken = place < torch.minimum(count, among.sum(dim=1)).unsqueeze(1)
    return torch.zeros_like(among).scatter(1, order, taken)
