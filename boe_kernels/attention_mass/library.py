"""The attention mass from PyTorch's own kernels, a block of query rows at a time."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from boe_kernels._key_mask import bias_of
from boe_kernels._masked_sdpa import visibility
from boe_kernels.entropy.reference import accumulation_dtype

# Of query rows: bounds the scores held at once to (B, Hq, 64, Lk).
_ROW_BLOCK = 64


def forward(
    q_rows: Tensor,
    k: Tensor,
    lse_rows: Tensor,
    weights: Tensor | None,
    rows: Tensor | None,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
) -> Tensor:
    """(B, Lk): the keys' shares of the rows' attention."""
    batch, heads, count, _ = q_rows.shape
    kv_heads, key_length = k.shape[1:3]
    group = heads // kv_heads
    dtype = accumulation_dtype(q_rows.dtype)
    keys = k.to(dtype).transpose(-2, -1)
    positions = torch.arange(key_length, device=k.device)
    counts = lse_rows > -torch.inf
    if rows is None:
        rows = torch.zeros(1, count, dtype=torch.int64, device=k.device)
    counts = counts & (rows >= 0)[:, None]
    # exp(s − ∞) = 0: such rows need no mask of their own.
    lse_rows = torch.where(counts, lse_rows.to(dtype), torch.inf)
    bias = bias_of(key_mask, dtype)
    mass = keys.new_zeros(batch, key_length)
    for start in range(0, count, _ROW_BLOCK):
        block = slice(start, min(start + _ROW_BLOCK, count))
        q = torch.where(counts[:, :, block, None], q_rows[:, :, block].to(dtype), 0.0)
        # The heads of a group become further rows of one head: k is not expanded.
        scores = rearrange(q, "b (h g) s d -> b h (g s) d", g=group) @ keys
        scores = rearrange(scores, "b h (g s) l -> b (h g) s l", g=group)
        scores.mul_(scale)
        if bias is not None:
            scores.add_(bias)
        p = scores.sub_(lse_rows[:, :, block, None]).exp_()
        visible = visibility(rows[:, block], positions, key_mask, window, block_size)
        if visible is not None:
            p.masked_fill_(~visible, 0.0)
        if weights is not None:
            w = torch.where((rows >= 0)[:, block], weights[:, block].to(dtype), 0.0)
            p.mul_(w[:, None, :, None])
        mass += p.sum(dim=(1, 2))
    return mass
