"""ActiveQueryAttention's backward: which kernels run.

Keys and values are read once if all virtual rows fit one tile; else dQ and dK, dV are
computed separately. The number of active rows decides, their values do not: nothing here
waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._attention_launch import (
    index_set,
    mask_and_stride,
    tiles_for,
    with_near_columns,
)
from boe_kernels._rows import with_unit_stride
from boe_kernels.query_attention.triton.one_pass import one_pass
from boe_kernels.query_attention.triton.split import split


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
    grad_rows: str,
    compact_dq: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv, each in the layout of its tensor; compact dq (B, Hq, A, D) contiguous.

    Queries outside ``rows`` (−1: padding) are not read, neither is what belongs to them.
    """
    q, k, v, out = (with_unit_stride(x) for x in (q, k, v, out))
    dout, lse = with_near_columns(dout), lse.contiguous()
    batch, heads, _, width = q.shape
    count = rows.shape[1]
    dq = q.new_empty((batch, heads, count, width)) if compact_dq else torch.empty_like(q)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    hidden = window is not None or block_size is not None
    virtual = count * (heads // k.shape[1])
    fitting = [tile for tile in tiles_for("one_pass", q, hidden) if tile.held >= virtual]
    rows, rows_stride = index_set(rows)
    mask, mask_stride = mask_and_stride(key_mask)
    if fitting and grad_rows == "queries":
        one_pass(
            dout, q, k, v, out, lse, rows, rows_stride, mask, mask_stride, dq, dk, dv,
            scale, window, block_size, compact_dq, fitting,
        )  # fmt: skip
    else:
        split(
            dout, q, k, v, None, None, out, lse, rows, rows_stride, None, mask, mask_stride,
            dq, dk, dv, scale, window, block_size,
            keys="all" if grad_rows == "queries" else "rows",
            compact_q=False,
            compact_dq=compact_dq,
        )  # fmt: skip
    return dq, dk, dv
