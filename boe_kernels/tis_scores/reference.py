"""The definition of the scores (eqs. 14, 15, 18 and 19 of the TABES paper)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from boe_kernels._autocast import in_given_dtypes
from boe_kernels.entropy.reference import accumulation_dtype

GATES = ("positive", "paper", "none")
"""What the gate multiplies: positive scores only, all of them (eq. 15), or nothing."""

NORMALISATIONS = ("none", "zscore", "minmax")
"""How influences are made comparable over the candidates of a canvas."""


@in_given_dtypes
def reference(
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
    """Score, influence, gate and penalty of every position, (B, P) each.

    With h = floor · remaining and λ = penalty (· remaining, if annealed):

        TIS_i = −⟨g_i, Δe_i⟩,   c_i = clip(1 − H_i/ln V, 0, 1),   λ·[h − H_i]₊²

    and score = gated(normalised(TIS)) − penalty at candidates, −∞ elsewhere.

    Args:
        gradient, delta: (B, C, D). entropy: (B, P).
        candidates: int64 (B or 1, C), positions in [0, P); −1 for padding.
        remaining: (B,).
    """
    dtype = accumulation_dtype(gradient.dtype)
    batch, positions = entropy.shape
    influence = torch.zeros(batch, positions, dtype=dtype, device=entropy.device)
    gates = (1.0 - entropy / math.log(vocabulary)).clamp(0.0, 1.0).to(dtype)
    penalties = torch.zeros_like(gates)
    score = torch.full_like(influence, -torch.inf)
    for row, slots in enumerate(candidates.expand(batch, -1)):
        fraction = remaining[row].to(dtype)
        weight = penalty * (fraction if anneal else 1.0)
        shortfall = (floor * fraction - entropy[row].to(dtype)).clamp_min(0.0)
        penalties[row] = weight * shortfall.square()
        kept = slots >= 0
        slots = slots[kept]
        tis = -(gradient[row, kept].to(dtype) * delta[row, kept].to(dtype)).sum(dim=-1)
        influence[row, slots] = tis
        value = _normalised(tis, normalise)
        if gate == "paper":
            value = value * gates[row, slots]
        elif gate == "positive":
            value = torch.where(value > 0, value * gates[row, slots], value)
        score[row, slots] = value - penalties[row, slots]
    return score, influence, gates, penalties


def _normalised(tis: Tensor, how: str) -> Tensor:
    """Influences of one canvas's candidates; all 0 where they are equal."""
    if how == "none" or tis.numel() == 0:
        return tis
    if how == "zscore":
        centred = tis - tis.mean()
        return centred / centred.square().mean().sqrt().clamp_min(torch.finfo(tis.dtype).tiny)
    low, high = tis.amin(), tis.amax()
    return (tis - low) / (high - low).clamp_min(torch.finfo(tis.dtype).tiny)
