"""From a step and a move to the record of one sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from boe.decoding.records import StepRecord
from boe.decoding.rows import Guess
from boe.samplers.step import Move, Step


def record_of(step: Step, move: Move, row: int, returned: Guess | None) -> StepRecord:
    """The record of batch row ``row``, which came back to a guess if it ``returned``."""
    masked, scores = step.masked[row], move.scores
    scored = scores.scored is not None and bool(scores.scored[row])
    reveal = move.reveal[row]

    def kept(values: Tensor) -> Tensor:
        return values[row, masked].cpu()

    remasked = torch.empty(0, dtype=torch.int64)
    if move.remask is not None:
        remasked = move.remask[row].nonzero().squeeze(1).cpu()
    revealed, tokens = step.positions[row, reveal].cpu(), move.tokens[row, reveal].cpu()
    if returned is not None and returned.other is not None:
        revealed, tokens = torch.tensor([returned.position]), torch.tensor([returned.other])
    return StepRecord(
        positions=kept(step.positions),
        entropy=kept(step.stats.entropy),
        scores=kept(scores.values),
        parts={name: kept(values) for name, values in scores.parts.items()} if scored else {},
        revealed=revealed,
        tokens=tokens,
        remasked=remasked,
    )
