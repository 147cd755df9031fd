"""Digits that occur twice where they may occur once."""

from __future__ import annotations

import torch
from torch import Tensor


def has_repeat(cells: Tensor, units: Tensor) -> Tensor:
    """Whether any unit holds a digit twice, bool (N,).

    Args:
        cells: int64 (N, K), digits from 1, 0 for empty.
        units: int64 (U, S), the cells of each unit; digits are at most S.
    """
    digits = torch.arange(1, units.shape[1] + 1, device=cells.device)
    held = cells[:, units.to(cells.device)].unsqueeze(-1) == digits
    return (held.sum(dim=2) > 1).any(dim=2).any(dim=1)
