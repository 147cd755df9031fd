"""Rows in a batch, and what their next step sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.decoding.prefix import Prefix
from boe.decoding.rows import Row, pad_flags
from boe.denoisers.base import DenoiserFacts, Prediction
from boe.samplers.memory import Memory
from boe.samplers.step import Clock, Ready
from boe.samplers.strategy import Strategy
from boe_kernels import pad_rows


@dataclass
class BatchState:
    """The rows in the batch: their canvas, tokens of the start, memory and frozen prefix."""

    canvas: Canvas
    given: Tensor
    memory: Memory
    prefix: Prefix | None = None

    def select(self, rows: Sequence[int]) -> BatchState:
        canvas = self.canvas.select(rows)
        index = torch.tensor(rows, device=self.given.device)
        given = self.given[index, : canvas.length]
        prefix = None if self.prefix is None else self.prefix.select(rows, canvas.length)
        return BatchState(canvas, given, self.memory.select(rows), prefix)


def gather(rows: list[Row]) -> BatchState:
    """The rows as a batch."""
    canvas = Canvas.of([row.item.ids for row in rows])
    given = pad_flags([row.given for row in rows], canvas.length)
    return BatchState(canvas, given, Memory.join([row.memory for row in rows]))


@dataclass(frozen=True)
class View:
    """What a step sees: slots (B, P), and the block's written tokens (B, L).

    Attributes:
        looks: per row, whether the observed positions of its block are among the slots.
    """

    clocks: tuple[Clock, ...]
    looks: list[bool]
    positions: Tensor
    masked: Tensor
    eligible: Tensor
    observed: Tensor


def view_of(live: list[Row], state: BatchState, strategy: Strategy, facts: DenoiserFacts) -> View:
    """Where the rows stand, and which positions their next step must see.

    A block-causal model is not asked for what lies behind the current block: it never
    predicts a block before those in front of it are written.
    """
    canvas, device = state.canvas, state.canvas.ids.device
    clocks = tuple(row.clock() for row in live)
    here = torch.arange(canvas.length, device=device)
    start = column([clock.start for clock in clocks], device)
    end = column([clock.end for clock in clocks], device)
    masked = canvas.masked(facts.mask_id)
    observed = (here >= start) & (here < end) & canvas.valid & ~masked & ~state.given
    looks = [strategy.observes(clock) for clock in clocks]
    seen = masked | (observed & column(looks, device)) if any(looks) else masked
    if facts.block_length is not None:
        seen = seen & (here < end)
    positions = pad_rows(seen)
    slots = positions >= 0
    if any(looks):
        slots = slots & masked.gather(1, positions.clamp_min(0))
    return View(clocks, looks, positions, slots, slots & (positions < end), observed)


def ready_row(prediction: Prediction, row: int, slots: Tensor) -> Ready:
    """One row's part of a prediction, at the given slots (P,)."""
    return Ready(prediction.positions[row, slots], prediction.logits[row, slots])


def column(values: list[int] | list[bool], device: torch.device) -> Tensor:
    """(B, 1) from a number per row."""
    return torch.tensor(values, device=device).unsqueeze(1)
