"""The prediction of a step, from as few forwards and rows as it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from boe.decoding.batch import BatchState, View
from boe.decoding.forwards import Forwards
from boe.decoding.kv_cache import Kept, RunPlan
from boe.decoding.rows import Row
from boe.denoisers.base import Keep, Prediction
from boe.samplers.caching import KVCache


@dataclass(frozen=True)
class Predicted:
    """What a prediction took, per row, and what it left.

    Attributes:
        calls: forwards, of however many rows.
        shares: their cost in forwards of the whole canvas.
        kept: keys and values for the next prediction.
    """

    calls: list[float]
    shares: list[float]
    kept: Kept | None = None


def predict(
    forwards: Forwards,
    cache: KVCache,
    live: list[Row],
    state: BatchState,
    view: View,
    keep: Keep,
) -> tuple[Prediction, Predicted]:
    """The step's prediction; rows that have theirs ready are not run again."""
    passes, positions = float(forwards.passes), view.positions
    spared = [
        row.ready is not None or (not row.remaining and not looks)
        for row, looks in zip(live, view.looks, strict=True)
    ]
    if keep != "nothing":
        spared = [False] * len(live)
    if type(cache) is not KVCache and not all(spared):
        return _predict_rows(forwards, cache, live, state, view, keep, spared)
    if not any(spared):
        prediction = forwards.predict(state.canvas, state.given, positions, keep)
        return prediction, Predicted([passes] * len(live), [passes] * len(live))
    stale = [k for k, spare in enumerate(spared) if not spare]
    shown: dict[int, Tensor] = {
        k: row.ready.logits for k, row in enumerate(live) if row.ready is not None
    }
    if stale:
        part = state.select(stale)
        rows = positions[torch.tensor(stale, device=positions.device)]
        fresh = forwards.predict(part.canvas, part.given, rows).logits
        shown.update(zip(stale, fresh, strict=True))
    vocabulary = forwards.denoiser.facts.vocab_size
    like = next(iter(shown.values()), torch.empty(0, device=positions.device))
    # Rows that have nothing to predict keep zeros, which nothing reads.
    merged = like.new_zeros(*positions.shape, vocabulary)
    for k, logits in shown.items():
        merged[k, : len(logits)] = logits
    calls = [0.0 if spare else passes for spare in spared]
    spent = Predicted(calls, calls, state.kept)
    return Prediction(state.canvas, merged, positions), spent


def _predict_rows(
    forwards: Forwards,
    cache: KVCache,
    live: list[Row],
    state: BatchState,
    view: View,
    keep: Keep,
    spared: list[bool],
) -> tuple[Prediction, Predicted]:
    """As :func:`predict`, running no row whose keys and values are kept."""
    canvas, kept = state.canvas, state.kept
    facts, passes = forwards.denoiser.facts, float(forwards.passes)
    plan = RunPlan.of(cache, facts, view.clocks, canvas, kept, view.due, spared)
    prediction, memories = forwards.predict_window(
        canvas,
        state.given,
        view.positions,
        plan.rows,
        () if kept is None else kept.memories,
        keep,
    )
    for k, row in enumerate(live):
        if spared[k] and row.ready is not None:
            prediction.logits[k, : len(row.ready.logits)] = row.ready.logits
    spent = Predicted(
        [0.0 if spare else passes for spare in spared],
        [passes * n / length for n, length in zip(plan.counts, canvas.lengths, strict=True)],
        plan.left(cache, canvas, kept, memories, spared),
    )
    return prediction, spent
