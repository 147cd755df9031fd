"""Active-row attention from PyTorch's own attention kernels.

Live keys and values are merged into one copy of the frozen ones; a single attention
call then serves the rows. PyTorch's backward also produces the gradients of the frozen
keys, which are dropped: a kernel that skips them saves two of its five products.
"""

from __future__ import annotations

from torch import Tensor

from boe_kernels._masked_sdpa import attend, attend_backward, rows_bias
from boe_kernels._rows import gather_rows, replace_rows, zero_padding


def forward(
    q_rows: Tensor,
    k_rows: Tensor,
    v_rows: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    key_padding_mask: Tensor | None,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output rows, their log-sum-exp, and the merged keys and values."""
    keys = replace_rows(k, rows, k_rows)
    values = replace_rows(v, rows, v_rows)
    q_rows = zero_padding(q_rows, rows)
    out, lse = attend(q_rows, keys, values, rows_bias(rows, k, key_padding_mask, window), scale)
    return zero_padding(out, rows), lse, keys, values


def backward(
    dout: Tensor,
    q_rows: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    key_padding_mask: Tensor | None,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv at the rows."""
    q_rows, dout = zero_padding(q_rows, rows), zero_padding(dout, rows)
    bias = rows_bias(rows, keys, key_padding_mask, window)
    dq, dk, dv = attend_backward(dout, q_rows, keys, values, out, lse, bias, scale)
    dk_rows, dv_rows = (zero_padding(gather_rows(grad, rows), rows) for grad in (dk, dv))
    return dq, dk_rows, dv_rows
