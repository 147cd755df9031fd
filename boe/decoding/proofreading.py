"""Blocks that are read again when they are written (:class:`boe.samplers.Proofread`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.decoding.batch import column
from boe.decoding.forwards import Forwards
from boe.decoding.rows import Row
from boe.decoding.setbacks import Room, UnusableLogits
from boe.denoisers.base import Denoiser, DenoiserFacts, UnsupportedModel, mark_rows
from boe.samplers.proofreading import Proofread
from boe_kernels import pad_rows

POSITIONS_AT_ONCE = 2**13
"""Positions of the canvases that are tried at once, if they fit: a frozen context copies keys
and values of as many, a full one runs them."""


@dataclass
class ReadingRoom:
    """What fits into memory: sequences read together, and canvases tried at once."""

    rows: Room = field(default_factory=Room)
    canvases: Room = field(default_factory=Room)

    def at_once(self, tokens: int, length: int) -> int:
        """How many canvases of this length are tried at once, of one for every token."""
        usual = min(tokens, max(1, POSITIONS_AT_ONCE // length))
        return usual if self.canvases.rows is None else min(usual, self.canvases.rows)

    def shrink(self, rows: int, at_once: int) -> None:
        """Note that a reading of so many sequences, so many canvases at once, did not fit."""
        if at_once > 1:
            self.canvases.shrink(at_once)
        else:
            self.rows.shrink(rows)


class Reading(NamedTuple):
    """What was found, and what it took.

    Attributes:
        doubted: bool (B, L), tokens that the model would write otherwise.
        forwards, rows: float64 (B,), forwards of the canvas, and rows run beside them.
    """

    doubted: Tensor
    forwards: Tensor
    rows: Tensor


def check_proofreading(proofread: Proofread | None, denoiser: Denoiser) -> None:
    """Raises an :class:`UnsupportedModel` unless the denoiser can be read as is asked."""
    if proofread is None or proofread.context == "full" or denoiser.rows_refusal is None:
        return
    raise UnsupportedModel(
        f"{denoiser.rows_refusal}; ask for proofread:context=full, a forward for every token"
    )


def to_read(
    proofread: Proofread,
    live: Sequence[Row],
    canvas: Canvas,
    left: Sequence[int],
    ends: Sequence[int | None],
) -> dict[int, Tensor]:
    """The rows that have written their block, not just as it was last read, with its tokens.

    Args:
        left: masks left in each row's block, and ends: where the row ends, if it does now.
    """
    due = {}
    for k, row in enumerate(live):
        written = left[k] == 0 or ends[k] is not None
        if row.done or not written or row.readings == proofread.rounds:
            continue
        tokens = canvas.ids[k, row.blocks[0].start : _stop(row, ends[k], canvas.lengths[k])]
        if len(tokens) and (row.read is None or not torch.equal(tokens, row.read)):
            due[k] = tokens.clone()
    return due


def seen_lengths(canvas: Canvas, rows: Sequence[Row], facts: DenoiserFacts) -> tuple[int, ...]:
    """How much of each canvas its block sees: in block-causal models nothing behind it."""
    if facts.block_length is None:
        return canvas.lengths
    return tuple(min(n, row.blocks[0].end) for n, row in zip(canvas.lengths, rows, strict=True))


def _stop(row: Row, end: int | None, length: int) -> int:
    """Up to where the current block is read."""
    stop = min(row.blocks[0].end, length)
    return stop if end is None else min(stop, end)


def read_again(
    forwards: Forwards,
    proofread: Proofread,
    rows: Sequence[Row],
    canvas: Canvas,
    given: Tensor,
    ends: Sequence[int | None],
    at_once: int,
) -> Reading:
    """What the model would not write again in the rows' blocks, and what it took to find out.

    Args:
        canvas: the rows' canvases; ``given`` marks the tokens of the start, bool (B, L).
        ends: where a row ends before its block does.
        at_once: how many canvases are tried together.

    Raises:
        UnusableLogits: logits are NaN.
    """
    device = canvas.ids.device
    here = torch.arange(canvas.length, device=device)
    stops = [_stop(*each) for each in zip(rows, ends, canvas.lengths, strict=True)]
    written = (here >= column([row.blocks[0].start for row in rows], device)) & (
        here < column(stops, device)
    )
    mask_id = forwards.denoiser.facts.mask_id
    written = written & ~given & ~canvas.masked(mask_id)
    kept = forwards.keep(canvas, given) if proofread.context == "frozen" else None
    row, position = written.nonzero(as_tuple=True)
    doubted, unusable = torch.zeros_like(written), torch.zeros_like(written)
    spent = torch.zeros(canvas.batch, dtype=torch.float64, device=device)
    for start in range(0, len(row), at_once):
        which, where = row[start : start + at_once], position[start : start + at_once]
        at = where.unsqueeze(1)
        lengths = tuple(canvas.lengths[k] for k in which.tolist())
        without = Canvas(canvas.ids[which].scatter(1, at, mask_id), lengths)
        if kept is None:
            seen = forwards.predict(without, given[which], at)
            run = torch.ones_like(which)
        else:
            # With shifted logits the row that predicts the token is another than the masked one.
            predicting = forwards.denoiser.facts.row_of(at)
            changed = mark_rows(torch.cat([at, predicting], dim=1), canvas.length)
            seen = forwards.predict_changed(
                kept, which, without, given[which], at, pad_rows(changed)
            )
            run = changed.sum(dim=1)
        logits = seen.logits[:, 0].double()
        best, own = logits.amax(dim=1), logits.gather(1, canvas.ids[which].gather(1, at))
        doubted[which, where] = own.squeeze(1) < best + math.log(proofread.ratio)
        unusable[which, where] = best.isnan()
        spent.index_add_(0, which, run.double() * forwards.passes)
    if bool(unusable.any()):
        messages = {
            k: f"the model's logits for sequence {rows[k].number}, position {at}, are NaN where "
            "it is read again"
            for k, at in reversed(unusable.nonzero().tolist())
        }
        raise UnusableLogits(messages)
    if kept is None:
        return Reading(doubted, spent, torch.zeros_like(spent))
    return Reading(doubted, torch.full_like(spent, float(forwards.passes)), spent)
