"""Scores from PyTorch's own kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from boe_kernels.entropy.reference import accumulation_dtype


def forward(
    gradient: Tensor,
    delta: Tensor,
    entropy: Tensor,
    candidates: Tensor,
    remaining: Tensor,
    vocabulary: int,
    gate: str,
    penalty: float,
    floor: float,
    anneal: bool,
    normalise: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Score, influence, gate and penalty of every position, (B, P) each."""
    batch, positions = entropy.shape
    dtype = accumulation_dtype(gradient.dtype)
    products = gradient.to(dtype) * delta.to(dtype)
    # One spare position takes what belongs to no candidate.
    slots = torch.where(candidates < 0, positions, candidates).expand(batch, -1)
    influence = products.new_zeros(batch, positions + 1)
    influence = influence.scatter_(1, slots, -products.sum(dim=-1))[:, :positions].clone()
    chosen = torch.zeros(batch, positions + 1, dtype=torch.bool, device=entropy.device)
    chosen = chosen.scatter_(1, slots, True)[:, :positions]
    value = _normalised(influence, chosen, normalise)
    gates = (1.0 - entropy / math.log(vocabulary)).clamp(0.0, 1.0)
    if gate == "paper":
        value = value * gates
    elif gate == "positive":
        value = torch.where(value > 0, value * gates, value)
    fraction = remaining.unsqueeze(1)
    weight = penalty * (fraction if anneal else 1.0)
    penalties = weight * (floor * fraction - entropy).clamp_min(0.0).square()
    score = torch.where(chosen, value - penalties, -torch.inf)
    return score.to(dtype), influence, gates.to(dtype), penalties.to(dtype)


def _normalised(tis: Tensor, chosen: Tensor, how: str) -> Tensor:
    if how == "none" or tis.shape[1] == 0:
        return tis
    count = chosen.sum(dim=1, keepdim=True).clamp_min(1)
    if how == "zscore":
        mean = torch.where(chosen, tis, 0.0).sum(dim=1, keepdim=True) / count
        centred = torch.where(chosen, tis - mean, 0.0)
        spread = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
        return centred / spread.clamp_min(torch.finfo(tis.dtype).tiny)
    low = tis.masked_fill(~chosen, torch.inf).amin(dim=1, keepdim=True)
    high = tis.masked_fill(~chosen, -torch.inf).amax(dim=1, keepdim=True)
    scaled = (tis - low) / (high - low).clamp_min(torch.finfo(tis.dtype).tiny)
    return torch.where(chosen, scaled, 0.0)
