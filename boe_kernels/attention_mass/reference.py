"""The definition of the attention mass."""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._autocast import in_given_dtypes
from boe_kernels._key_mask import bias_of
from boe_kernels._masked_sdpa import visibility
from boe_kernels.entropy.reference import accumulation_dtype


@in_given_dtypes
def reference(
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
    """Σ_h Σ_r w_r · exp(scale · q kᵀ + bias − lse) over the visible pairs, (B, Lk).

    Args:
        rows: int64 (B or 1, S), positions of the query rows; −1 for padding. ``None``: no
            row is padding, and nothing depends on positions.
    """
    dtype = accumulation_dtype(q_rows.dtype)
    keys = k.to(dtype).repeat_interleave(q_rows.shape[1] // k.shape[1], dim=1)
    counts = lse_rows > -torch.inf
    if rows is not None:
        counts = counts & (rows >= 0)[:, None]
    q_rows = torch.where(counts.unsqueeze(-1), q_rows.to(dtype), 0.0)
    lse_rows = torch.where(counts, lse_rows.to(dtype), 0.0)
    scores = q_rows @ keys.transpose(-2, -1) * scale
    bias = bias_of(key_mask, dtype)
    if bias is not None:
        scores = scores + bias
    p = (scores - lse_rows.unsqueeze(-1)).exp()
    positions = torch.arange(k.shape[2], device=k.device)
    if rows is None:
        rows = torch.zeros(1, q_rows.shape[2], dtype=torch.int64, device=k.device)
    visible = visibility(rows, positions, key_mask, window, block_size)
    kept = counts.unsqueeze(-1) if visible is None else counts.unsqueeze(-1) & visible
    p = torch.where(kept, p, 0.0)
    if weights is not None:
        p = torch.where(kept, p * weights.to(dtype)[:, None, :, None], 0.0)
    return p.sum(dim=(1, 2))
