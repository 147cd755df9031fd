"""The definition of active-row attention."""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._autocast import in_given_dtypes
from boe_kernels._key_mask import bias_of
from boe_kernels._masked_sdpa import visibility
from boe_kernels._rows import spread_by_selection, zero_padding
from boe_kernels.query_attention.reference import dense_attention


@in_given_dtypes
def reference(
    q_rows: Tensor,
    k_rows: Tensor,
    v_rows: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
) -> Tensor:
    """Dense attention of the rows against keys that are live at the rows, frozen elsewhere.

    Args:
        rows: int64 (B or 1, A); −1 for padding, whose output is zero.
    """
    positions = torch.arange(k.shape[2], device=k.device)
    live_keys, live = spread_by_selection(k_rows, rows, k.shape[2])
    live_values, _ = spread_by_selection(v_rows, rows, k.shape[2])
    keys = torch.where(live, live_keys, k.detach())
    values = torch.where(live, live_values, v.detach())
    q_rows = zero_padding(q_rows, rows)
    visible = visibility(rows, positions, key_mask, window, block_size)
    bias = bias_of(key_mask, torch.float32)
    out = dense_attention(q_rows, keys, values, visible, scale, bias)
    return zero_padding(out, rows)
