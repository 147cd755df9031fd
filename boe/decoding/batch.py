"""Rows in a batch, and what their next step sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.decoding.kv_cache import Due, Kept, due_rows
from boe.decoding.rows import Row, pad_flags
from boe.denoisers.base import DenoiserFacts, Prediction
from boe.samplers.caching import KVCache
from boe.samplers.memory import Memory
from boe.samplers.step import Clock, Ready
from boe.samplers.strategy import Strategy
from boe_kernels import pad_rows


@dataclass
class BatchState:
    """The rows in the batch: canvas, tokens of the start, memory, and what forwards left."""

    canvas: Canvas
    given: Tensor
    memory: Memory
    kept: Kept | None = None

    def select(self, rows: Sequence[int]) -> BatchState:
        canvas = self.canvas.select(rows)
        index = torch.tensor(rows, device=self.given.device)
        given = self.given[index, : canvas.length]
        kept = None if self.kept is None else self.kept.select(rows, canvas.length)
        return BatchState(canvas, given, self.memory.select(rows), kept)


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
        due: rows that must be run, where delayed caching does without some.
    """

    clocks: tuple[Clock, ...]
    looks: list[bool]
    positions: Tensor
    masked: Tensor
    eligible: Tensor
    observed: Tensor
    due: Due | None = None


def view_of(
    live: list[Row],
    state: BatchState,
    strategy: Strategy,
    facts: DenoiserFacts,
    cache: KVCache,
) -> View:
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
    must_run, due = due_rows(cache, facts, canvas, state.kept, seen), None
    if must_run is None:
        positions = pad_rows(seen)
    else:
        # One wait for the device, as without a cache.
        counts = torch.stack([seen.sum(dim=1), must_run.sum(dim=1)]).tolist()
        positions = pad_rows(seen, max(counts[0]))
        due = Due(pad_rows(must_run, max(counts[1])), counts[1])
    slots = positions >= 0
    if any(looks):
        slots = slots & masked.gather(1, positions.clamp_min(0))
    # What lies behind the end that a row had before tokens were taken back waits.
    if any(row.until is not None for row in live):
        untils = [row.until for row in live]
        ends = [c.end if until is None else until for c, until in zip(clocks, untils, strict=True)]
        end = column(ends, device)
    return View(clocks, looks, positions, slots, slots & (positions < end), observed, due)


def ready_row(prediction: Prediction, row: int, slots: Tensor) -> Ready:
    """One row's part of a prediction, at the given slots (P,)."""
    return Ready(prediction.positions[row, slots], prediction.logits[row, slots])


def column(values: list[int] | list[bool], device: torch.device) -> Tensor:
    """(B, 1) from a number per row."""
    return torch.tensor(values, device=device).unsqueeze(1)
