"""What a policy sees of a decoding step, and what it answers.

Per-slot tensors are (B, P): the P positions per batch row that were predicted, in
ascending order and padded; per-position tensors are (B, L) over the whole canvas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers.base import Denoiser, Prediction, mark_rows
from boe.samplers.memory import Memory
from boe_kernels import EntropyStats, entropy_stats, pad_rows

# Relative: a rounded share in a rounded product is off by no more.
_ROUNDING = 2.0**-51


@dataclass(frozen=True)
class Clock:
    """Where one row stands in its current block; numbers on the host.

    Attributes:
        index: steps already taken in the block.
        total: steps that the policy wants for it; ``index`` may pass it where masks are
            left over.
        planned: steps that the budget plans for it.
        change: by how many masks this step is to shrink the block, below 0 if it is to
            take tokens back.
        left: masks left in the block, and masks: how many it had.
        start, end: the block's positions are [start, end).
        plan: by how many masks each step of the block is planned to shrink it.
    """

    index: int
    total: int
    planned: int
    change: int
    left: int
    masks: int
    start: int
    end: int
    plan: tuple[int, ...]

    def due(self, early: float) -> int:
        """How many tokens short of its plan the block is; below 0 if it is ahead.

        Args:
            early: so much of the next step's share is counted as due, too, rounded down.
        """
        following = sum(self.plan[self.index + 1 : self.index + 2])
        planned = sum(self.plan[: self.index + 1]) + math.floor(early * following)
        return planned - (self.masks - self.left)


class Forwards(Protocol):
    """The decoding loop's forwards: guided, with suppressed ids, and counted by ``passes``."""

    passes: int

    def predict(self, canvas: Canvas, given: Tensor, positions: Tensor) -> Prediction:
        """Logits at ``positions`` (N, P); ``given`` (N, L) marks the tokens of the start."""

    def predict_changed(
        self,
        prediction: Prediction,
        which: Tensor,
        canvas: Canvas,
        given: Tensor,
        positions: Tensor,
        rows: Tensor,
    ) -> Prediction:
        """As :meth:`boe.denoisers.Denoiser.predict_changed`, guided."""


@dataclass(frozen=True)
class Step:
    """Everything a policy may look at in one decoding step.

    Attributes:
        prediction: its ``positions`` are all masked positions, ascending, −1 for padding;
            for policies that ask for them (``observes``) the observed ones of the block too.
        stats: of the prediction's logits, (B, P).
        proposal: int64 (B, P), the token that would be written.
        proposal_probability: (B, P), its probability at temperature 1.
        drawn_probability: (B, P), its probability in the distribution it was drawn from
            (temperature and nucleus); as ``proposal_probability`` at temperature 0.
        noised_log_probability: float64 (B, P), its log-probability in the softmax of the
            Gumbel-noised logits, for policies that ask for it (``noised``).
        masked: bool (B, P), slots that hold the mask token.
        eligible: bool (B, P), masked positions that may be revealed now.
        budget: int64 (B,), how many will be (as planned, at least 0).
        remaining: (B,), masks left over masks at the start.
        observed: bool (B, L), written tokens of the current block, which may be taken back.
        given: bool (B, L), tokens that were there at the start.
        delayed: bool (B, P), positions that are revealed after all others, or ``None``.
        discarded: bool (B, P), positions behind a stop pattern that is written, which will be
            no part of the answer, or ``None``.
        clocks: one per row.
        generators: one random generator per batch row, fresh in every step.
        memory: what the policy kept of earlier steps.
    """

    denoiser: Denoiser
    canvas: Canvas
    prediction: Prediction
    stats: EntropyStats
    proposal: Tensor
    proposal_probability: Tensor
    drawn_probability: Tensor
    noised_log_probability: Tensor | None
    masked: Tensor
    eligible: Tensor
    budget: Tensor
    remaining: Tensor
    observed: Tensor
    given: Tensor
    delayed: Tensor | None
    clocks: tuple[Clock, ...]
    generators: Iterable[torch.Generator]
    memory: Memory
    forwards: Forwards
    discarded: Tensor | None = None

    @property
    def positions(self) -> Tensor:
        """int64 (B, P): the position of each slot, -1 for padding."""
        return self.prediction.positions

    def of_rows(self, number: Callable[[Clock], float]) -> Tensor:
        """float64 (B, 1), a number per row from its clock."""
        values = [[float(number(clock))] for clock in self.clocks]
        return torch.tensor(values, dtype=torch.float64, device=self.canvas.ids.device)

    def at_slots(self, values: Tensor) -> Tensor:
        """(B, P), per-position ``values`` (B, L) at the predicted positions."""
        return values.gather(1, self.positions.clamp_min(0))

    def on_canvas(self, slots: Tensor) -> Tensor:
        """bool (B, L), where the positions of the ``slots`` (B, P) are."""
        nowhere = torch.zeros_like(self.given)
        return self.written(nowhere, slots, torch.ones_like(slots))

    def written(self, onto: Tensor, slots: Tensor, values: Tensor) -> Tensor:
        """A copy of ``onto`` (B, L) with ``values`` (B, P) at the positions of ``slots``."""
        # Slots that are not to be written go to a spare column: nothing has to be counted.
        target = torch.where(slots, self.positions, self.canvas.length)
        return torch.nn.functional.pad(onto, (0, 1)).scatter_(1, target, values)[:, :-1]

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

    def gumbel(self, where: Tensor) -> Tensor:
        """float64 Gumbel noise where the mask ``where`` (B, N) is set, anything elsewhere."""
        return gumbel_of(self.uniform(where))

    def foresee(
        self, rows: Tensor, ids: Tensor, extra: Tensor | None = None
    ) -> tuple[Prediction, EntropyStats]:
        """A forward of other canvases that rows of this one could become.

        Args:
            rows: int64 (N,), which row each of them comes from.
            ids: int64 (N, L).
            extra: bool (N, L), positions to predict besides the masked ones.

        Of a block-causal model, positions up to the end of the current block are predicted.
        """
        canvas, wanted = self._foreseen(rows, ids, extra)
        prediction = self.forwards.predict(canvas, self.given[rows], pad_rows(wanted))
        return prediction, entropy_stats(prediction.logits)

    def foresee_frozen(self, rows: Tensor, ids: Tensor) -> tuple[Prediction, EntropyStats, Tensor]:
        """As :meth:`foresee` from the written and the masked rows alone; how many these are.

        The other rows keep the keys and values of the step's forward, which the policy must
        have asked for (``keep``), and under guidance of both branches (``combines``). The
        numbers of rows, int64 (N,), count each pass of guidance.
        """
        facts = self.denoiser.facts
        canvas, wanted = self._foreseen(rows, ids)
        positions = pad_rows(wanted)
        predicting = mark_rows(facts.row_of(positions), canvas.length)
        active = wanted | predicting | (ids != self.canvas.ids[rows])
        prediction = self.forwards.predict_changed(
            self.prediction, rows, canvas, self.given[rows], positions, pad_rows(active)
        )
        run = active.sum(dim=1) * self.forwards.passes
        return prediction, entropy_stats(prediction.logits), run

    def _foreseen(
        self, rows: Tensor, ids: Tensor, extra: Tensor | None = None
    ) -> tuple[Canvas, Tensor]:
        """The canvases that ``rows`` could become, and where they are to be predicted (N, L)."""
        order = rows.tolist()
        canvas = Canvas(ids, tuple(self.canvas.lengths[row] for row in order))
        wanted = canvas.masked(self.denoiser.facts.mask_id)
        if extra is not None:
            wanted = wanted | (extra & canvas.valid)
        if self.denoiser.facts.block_length is not None:
            ends = torch.tensor([self.clocks[row].end for row in order], device=ids.device)
            wanted = wanted & (torch.arange(ids.shape[1], device=ids.device) < ends[:, None])
        return canvas, wanted


@dataclass(frozen=True)
class StepCost:
    """What a policy spent besides the step's own forward, each (B,) float64.

    Attributes:
        forwards: full forwards.
        backwards: backward passes.
        rows: canvas rows that were run forward or backward on their own.
    """

    forwards: Tensor
    backwards: Tensor
    rows: Tensor

    def __add__(self, other: StepCost) -> StepCost:
        return StepCost(
            self.forwards + other.forwards,
            self.backwards + other.backwards,
            self.rows + other.rows,
        )

    @classmethod
    def of_forwards(cls, forwards: Tensor) -> StepCost:
        """Nothing but ``forwards`` (B,)."""
        nothing = torch.zeros_like(forwards, dtype=torch.float64)
        return cls(forwards.double(), nothing, nothing)


@dataclass(frozen=True)
class Scores:
    """A ranking: eligible positions with the largest ``values`` (B, P) are revealed first.

    Positions at −∞ are revealed only where too few others are left. ``parts`` are what
    the values were made of, by name, for the trajectory record; ``scored`` tells which
    rows, bool (B,), have them: by default all that have a choice.
    """

    values: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    cost: StepCost | None = None
    scored: Tensor | None = None


class Ready(NamedTuple):
    """One row's prediction: positions (P,), ascending, all masked ones, and logits (P, V)."""

    positions: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Move:
    """What a step does to the canvas.

    Attributes:
        reveal: bool (B, P), slots to be written, all of them eligible.
        tokens: int64 (B, P), what with.
        scores: for the record and the account.
        remask: bool (B, L), observed positions that become masks again, or ``None``.
        ready: per row the prediction of the canvas after this move, if a forward already
            showed it, so that the next step runs none.
    """

    reveal: Tensor
    tokens: Tensor
    scores: Scores
    remask: Tensor | None = None
    ready: tuple[Ready | None, ...] | None = None


def share_of(counts: Tensor, share: float) -> Tensor:
    """⌈share · count⌉ of whole numbers, int64, for a share written in decimals.

    In float64, less the error of rounding share and product: 0.07 of 100 is 7, not the 8 that
    0.07 · 100 = 7.000000000000001 would round up to.
    """
    product = counts.double() * share
    return (product - product * _ROUNDING).ceil().to(torch.int64)


def top_positions(rank: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """bool (B, P): the ``count`` (B,) members of ``among`` with the largest rank.

    Ties go to the lowest position.
    """
    order = ranked_order(rank, among)
    place = torch.arange(rank.shape[1], device=rank.device)
    taken = place < torch.minimum(count, among.sum(dim=1)).unsqueeze(1)
    return torch.zeros_like(among).scatter(1, order, taken)


def ranked_order(rank: Tensor, among: Tensor) -> Tensor:
    """int64 (B, P), all slots: members of ``among`` from the largest rank down, then the rest."""
    # Members that rank at −∞ must still precede the positions that are no members.
    rank = rank.clamp_min(torch.finfo(rank.dtype).min).masked_fill(~among, -torch.inf)
    return rank.argsort(dim=1, descending=True, stable=True)


def gumbel_of(uniform: Tensor) -> Tensor:
    """Gumbel noise from uniform noise, both float64.

    float32 noise would cut off the Gumbel tail and lower the temperature.
    """
    return -(-uniform.clamp_min(torch.finfo(torch.float64).tiny).log()).log()
