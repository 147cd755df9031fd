"""Scores of an earlier step, to rank by in the steps between two that are scored."""

from __future__ import annotations

import torch
from torch import Tensor

from boe.samplers.step import Step

_NAME = "last_scores"


def remember_scores(step: Step, values: Tensor, due: Tensor) -> None:
    """Keep a step's scores for those that follow.

    Args:
        values: (B, P), −∞ where a position was not scored.
        due: bool (B,), rows of a scored step; the others keep what they have.
    """
    kept = step.memory.on_canvas(_NAME, step.canvas, -torch.inf)
    fresh = step.written(torch.full_like(kept, -torch.inf), step.masked, values.double())
    step.memory.put(_NAME, torch.where(due.unsqueeze(1), fresh, kept), -torch.inf)


def by_last_scores(step: Step, fallback: Tensor) -> Tensor:
    """(B, P), float64: the order of the last scores, then that of ``fallback``.

    Args:
        fallback: (B, P), probabilities, −∞ at positions that do not compete.
    """
    last = step.at_slots(step.memory.on_canvas(_NAME, step.canvas, -torch.inf))
    competing = fallback > -torch.inf
    known = competing & (last > -torch.inf)
    lowest = last.masked_fill(~known, torch.inf).amin(dim=1, keepdim=True)
    lowest = torch.where(lowest.isinf(), 0.0, lowest)
    # Probabilities are at most 1: every position without a score ranks below those with one.
    return torch.where(known, last, lowest - 2.0 + fallback.double())
