"""dQ of the active rows: one half of the split backward, and the sum of parts of dQ.

A program holds a tile of virtual rows and walks through a stretch of the keys. Where there
are several stretches each leaves a part of dQ, float32 (part, canvas, key head, capacity,
BLOCK_D) with room for ``capacity`` virtual rows; the parts are then added in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from boe_kernels._triton_attention import (
    LOG2E,
    add_dot,
    allowed_keys,
    is_visible,
    key_biases,
    key_rows,
    load_lse,
    load_queries,
    probabilities,
    row_products,
    seen_keys,
)
from boe_kernels._triton_rows import (
    PARTS_AT_ONCE,
    RUNTIME,
    UNALIGNED,
    load_tile,
    part_rows,
    row_pointers,
    rows_of_slots,
    store_tile,
    zero_other_rows,
)

ROWS_TO_SUM = 16
"""Virtual rows per program that adds up parts."""


@triton.jit
def store_dq(
    dq,
    dq_ptr,
    dq_strides,
    part_ptr,
    part,
    batch,
    batches,
    kv_head,
    kv_heads,
    capacity,
    group,
    count,
    virtual,
    row,
    COMPACT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """Write virtual rows of dQ: as a part, if there are parts, else where they belong.

    COMPACT: they belong at their slots, padding included, which is zero.
    """
    slot = virtual // group
    if part_ptr is not None:
        rows = part_rows(part, batch, batches, kv_head, kv_heads, capacity, virtual)
        store_tile(part_ptr + rows * BLOCK_D, dq, slot < count, BLOCK_D, BLOCK_D)
    else:
        head = kv_head * group + virtual % group
        index = slot if COMPACT else row
        keep = slot < count if COMPACT else row >= 0
        rows = row_pointers(dq_ptr, dq_strides, batch, head, index, ALIGN)
        store_tile(rows, dq, keep, HEAD_DIM, BLOCK_D)


@triton.jit
def sum_parts(
    tile,
    part_ptr,
    parts,
    capacity,
    rows_ptr,
    rows_stride,
    dq_ptr,
    dq_strides,
    batch,
    batches,
    kv_head,
    kv_heads,
    count,
    group,
    COMPACT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """dQ of a tile of virtual rows as the sum of its parts, in their order."""
    virtual = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row = rows_of_slots(rows_ptr, rows_stride, batch, virtual // group, count)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(0, parts, PARTS_AT_ONCE):
        for ahead in tl.static_range(PARTS_AT_ONCE):
            part = first + ahead
            rows = part_rows(part, batch, batches, kv_head, kv_heads, capacity, virtual)
            present = virtual < tl.where(part < parts, count * group, 0)
            dq += load_tile(part_ptr + rows * BLOCK_D, present, BLOCK_D, BLOCK_D)
    store_dq(
        dq, dq_ptr, dq_strides, None, 0, batch, batches, kv_head, kv_heads, capacity, group,
        count, virtual, row, COMPACT, HEAD_DIM, BLOCK_D, ALIGN,
    )  # fmt: skip


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=UNALIGNED)
def bwd_sum_parts_kernel(
    part_ptr,
    rows_ptr,
    dq_ptr,
    rows_stride: tl.int64,
    stride_dqb: tl.int64,
    stride_dqh: tl.int64,
    stride_dql: tl.int64,
    count,
    group,
    parts,
    capacity,
    COMPACT_DQ: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One program per key head, canvas and tile of virtual rows."""
    dq_strides = (stride_dqb, stride_dqh, stride_dql)
    sum_parts(
        tl.program_id(2), part_ptr, parts, capacity, rows_ptr, rows_stride, dq_ptr, dq_strides,
        tl.program_id(1), tl.num_programs(1), tl.program_id(0), tl.num_programs(0), count, group,
        COMPACT_DQ, HEAD_DIM, BLOCK_D, ALIGN, BLOCK_M,
    )  # fmt: skip


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=UNALIGNED)
def bwd_dq_kernel(
    dout_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    live_k_ptr,
    live_v_ptr,
    out_ptr,
    lse_ptr,
    rows_ptr,
    slots_ptr,
    mask_ptr,
    dq_ptr,
    part_ptr,
    stats_ptr,
    stride_gb: tl.int64,
    stride_gh: tl.int64,
    stride_gl: tl.int64,
    stride_gd,
    stride_qb: tl.int64,
    stride_qh: tl.int64,
    stride_ql: tl.int64,
    stride_kb: tl.int64,
    stride_kh: tl.int64,
    stride_kl: tl.int64,
    stride_vb: tl.int64,
    stride_vh: tl.int64,
    stride_vl: tl.int64,
    stride_lkb: tl.int64,
    stride_lkh: tl.int64,
    stride_lkl: tl.int64,
    stride_lvb: tl.int64,
    stride_lvh: tl.int64,
    stride_lvl: tl.int64,
    stride_ob: tl.int64,
    stride_oh: tl.int64,
    stride_ol: tl.int64,
    rows_stride: tl.int64,
    slots_stride: tl.int64,
    mask_stride: tl.int64,
    stride_dqb: tl.int64,
    stride_dqh: tl.int64,
    stride_dql: tl.int64,
    scale,
    window,
    block_size,
    count,
    length,
    key_length,
    group,
    row_tiles,
    parts,
    stretch,
    COMPACT_Q: tl.constexpr,
    COMPACT_DQ: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per key head, canvas, stretch of keys and tile of virtual rows.

    Further programs write zeros to the rows of dQ that the index set does not name.
    ``stats``, float32 (2, canvas, key head, capacity), receives lse in base 2 and δ, for the
    kernel of dK and dV. COMPACT_Q: q, dO, O and lse are stored by slot, not by row.
    COMPACT_DQ: so is dQ.
    """
    q_strides = (stride_qb, stride_qh, stride_ql)
    k_strides = (stride_kb, stride_kh, stride_kl)
    v_strides = (stride_vb, stride_vh, stride_vl)
    live_k_strides = (stride_lkb, stride_lkh, stride_lkl)
    live_v_strides = (stride_lvb, stride_lvh, stride_lvl)
    out_strides = (stride_ob, stride_oh, stride_ol)
    dout_strides = (stride_gb, stride_gh, stride_gl, stride_gd)
    dq_strides = (stride_dqb, stride_dqh, stride_dql)
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    batch = tl.program_id(1)
    batches = tl.num_programs(1)
    program = tl.program_id(2)
    if program < row_tiles * parts:
        tile = program % row_tiles
        part = program // row_tiles
        virtual = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        slot = virtual // group
        head = kv_head * group + virtual % group
        row = rows_of_slots(rows_ptr, rows_stride, batch, slot, count)
        active = row >= 0
        index = slot if COMPACT_Q else row
        q, dout, delta = load_queries(
            q_ptr, q_strides, dout_ptr, dout_strides, out_ptr, out_strides,
            batch, head, index, active, HEAD_DIM, BLOCK_D, ALIGN,
        )  # fmt: skip
        lse = load_lse(lse_ptr, batch, head, kv_heads * group, length, index, active)
        capacity = row_tiles * BLOCK_M
        if part == 0:
            rows = part_rows(0, batch, batches, kv_head, kv_heads, capacity, virtual)
            tl.store(stats_ptr + rows, lse)
            rows = part_rows(1, batch, batches, kv_head, kv_heads, capacity, virtual)
            tl.store(stats_ptr + rows, delta)

        scale_log2 = scale * LOG2E
        begin, end = seen_keys(row, key_length, window, block_size)
        begin = tl.maximum(begin, part * stretch) // BLOCK_N * BLOCK_N
        end = tl.minimum(end, (part + 1) * stretch)
        dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for first_key in range(begin, end, BLOCK_N):
            key = first_key + tl.arange(0, BLOCK_N)
            keep = key < key_length
            k_rows, v_rows = key_rows(
                k_ptr, v_ptr, live_k_ptr, live_v_ptr, slots_ptr,
                k_strides, v_strides, live_k_strides, live_v_strides, slots_stride,
                batch, kv_head, key, keep, ALIGN,
            )  # fmt: skip
            k = load_tile(k_rows, keep, HEAD_DIM, BLOCK_D)
            v = load_tile(v_rows, keep, HEAD_DIM, BLOCK_D)
            keep = allowed_keys(key, keep, mask_ptr, mask_stride, batch)
            bias = None
            if mask_ptr is not None and mask_ptr.dtype.element_ty == tl.float32:
                bias = key_biases(key, keep, mask_ptr, mask_stride, batch)
            visible = is_visible(row[:, None], key[None, :], keep[None, :], window, block_size)
            p = probabilities(row_products(q, k), scale_log2, lse[:, None], visible, bias)
            ds = p * (row_products(dout, v) - delta[:, None])
            dq = add_dot(ds.to(k.dtype), k, dq)
        store_dq(
            dq * scale, dq_ptr, dq_strides, part_ptr, part, batch, batches, kv_head, kv_heads,
            capacity, group, count, virtual, row, COMPACT_DQ, HEAD_DIM, BLOCK_D, ALIGN,
        )  # fmt: skip
    elif not COMPACT_DQ:
        share = program - row_tiles * parts
        shares = tl.num_programs(2) - row_tiles * parts
        zero_other_rows(
            dq_ptr, dq_strides, batch, kv_head * group, group, share, shares, length,
            rows_ptr, rows_stride, count, HEAD_DIM, BLOCK_D, ALIGN,
        )  # fmt: skip
