"""The definition of active-row attention."""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._masked_sdpa import visibility
from boe_kernels.query_attention.reference import dense_attention


def reference(
    q_rows: Tensor,
    k_rows: Tensor,
    v_rows: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    key_padding_mask: Tensor | None,
    scale: float,
    window: int | None,
) -> Tensor:
    """Dense attention of the rows against keys that are live at the rows, frozen elsewhere.

    Args:
        rows: int64 (B or 1, A); −1 for padding, whose output is zero.
    """
    positions = torch.arange(k.shape[2], device=k.device)
    # (B, A, Lk) one-hot selection, which writes each live row to its place.
    selection = rows.unsqueeze(-1) == positions
    place = selection.transpose(1, 2).unsqueeze(1).to(k.dtype)
    live = selection.any(dim=1)[:, None, :, None]
    keys = torch.where(live, place @ k_rows, k.detach())
    values = torch.where(live, place @ v_rows, v.detach())
    visible = visibility(rows, positions, key_padding_mask, window)
    out = dense_attention(q_rows, keys, values, visible, scale)
    return torch.where((rows >= 0)[:, None, :, None], out, 0.0)
