"""Active-row attention's backward: dq over all keys, dk and dv at the live ones only."""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._attention_launch import (
    index_set,
    mask_and_stride,
    with_near_columns,
)
from boe_kernels._rows import with_unit_stride
from boe_kernels.query_attention.triton.split import split
from boe_kernels.row_attention.triton.forward import slot_map


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
    """dq, dk_rows and dv_rows, contiguous; zeros at padding. ``keys``, ``values``: not used."""
    q_rows, k_rows, v_rows, k, v, out = (
        with_unit_stride(x) for x in (q_rows, k_rows, v_rows, k, v, out)
    )
    rows, rows_stride = index_set(rows)
    mask, mask_stride = mask_and_stride(key_mask)
    dq, dk, dv = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_rows, k_rows, v_rows)
    )
    slots = slot_map(rows, rows_stride, k.shape[2])
    split(
        with_near_columns(dout), q_rows, k, v, k_rows, v_rows, out, lse.contiguous(), rows,
        rows_stride, slots, mask, mask_stride, dq, dk, dv, scale, window, block_size,
        keys="slots",
        compact_q=True,
        compact_dq=True,
    )  # fmt: skip
    return dq, dk, dv
