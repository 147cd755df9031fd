"""Active-row attention from PyTorch's own attention kernels.

Live keys and values are merged into one copy of the frozen ones; a single attention
call then serves the rows. PyTorch's backward also produces the gradients of the frozen
keys, which are dropped: a kernel that skips them saves two of its five products.
"""

from __future__ import annotations

from torch import Tensor

from boe_kernels._masked_sdpa import attend, attend_backward, rows_bias
from boe_kernels._rows import gather_rows, has_padding, replace_rows, zero_padding


def forward(
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
    *,
    padded: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output rows, their log-sum-exp, and the merged keys and values.

    ``padded`` tells whether any row is padding; it is found out if not given.
    """
    padded = has_padding(rows) if padded is None else padded
    keys = replace_rows(k, rows, k_rows)
    values = replace_rows(v, rows, v_rows)
    bias = rows_bias(rows, k, key_mask, window, block_size)
    if not padded:
        return *attend(q_rows, keys, values, bias, scale), keys, values
    out, lse = attend(zero_padding(q_rows, rows), keys, values, bias, scale)
    return zero_padding(out, rows), lse, keys, values


def backward(
    dout: Tensor,
    q_rows: Tensor,
    k_rows: Tensor,
    v_rows: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv at the rows, contiguous. Reads the merged ``keys`` and ``values`` only."""
    padded = has_padding(rows)
    if padded:
        q_rows, dout = zero_padding(q_rows, rows), zero_padding(dout, rows)
    bias = rows_bias(rows, keys, key_mask, window, block_size)
    dq, dk, dv = attend_backward(dout, q_rows, keys, values, out, lse, bias, scale)
    read = rows.clamp_min(0) if padded else rows
    dk_rows, dv_rows = gather_rows(dk, read), gather_rows(dv, read)
    if padded:
        dk_rows, dv_rows = zero_padding(dk_rows, rows), zero_padding(dv_rows, rows)
    return dq.contiguous(), dk_rows.contiguous(), dv_rows.contiguous()
