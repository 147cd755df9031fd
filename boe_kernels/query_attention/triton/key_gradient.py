"""dK and dV from the active rows: the other half of a split backward."""

from __future__ import annotations

import triton
import triton.language as tl

from boe_kernels._triton_attention import (
    LOG2E,
    add_dot,
    allowed_keys,
    is_visible,
    key_biases,
    probabilities,
    row_products,
    sees_any,
)
from boe_kernels._triton_rows import (
    RUNTIME,
    UNALIGNED,
    load_tile,
    part_rows,
    row_pointers,
    rows_of_slots,
    store_tile,
    used_slots,
    zero_other_rows,
)
from boe_kernels.query_attention.triton.query_gradient import sum_parts


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=UNALIGNED)
def bwd_dkdv_kernel(
    dout_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    rows_ptr,
    mask_ptr,
    stats_ptr,
    dk_ptr,
    dv_ptr,
    dq_ptr,
    part_ptr,
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
    rows_stride: tl.int64,
    mask_stride: tl.int64,
    stride_dkb: tl.int64,
    stride_dkh: tl.int64,
    stride_dkl: tl.int64,
    stride_dvb: tl.int64,
    stride_dvh: tl.int64,
    stride_dvl: tl.int64,
    stride_dqb: tl.int64,
    stride_dqh: tl.int64,
    stride_dql: tl.int64,
    scale,
    window,
    block_size,
    count,
    key_length,
    group,
    capacity,
    parts,
    key_tiles,
    sum_programs,
    KEYS: tl.constexpr,
    COMPACT_Q: tl.constexpr,
    COMPACT_DQ: tl.constexpr,
    RAGGED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SUM_M: tl.constexpr,
):
    """One program per key head, canvas and tile of keys, through all virtual rows.

    KEYS: the keys whose dK and dV are wanted. "all"; "rows": those that the index set names,
    zeros elsewhere; "slots": keys that are stored by slot.
    RAGGED: each canvas has an index set of its own, which may end in padding.

    Further programs add up the parts of dQ, if there are any, and write the zeros.
    """
    q_strides = (stride_qb, stride_qh, stride_ql)
    k_strides = (stride_kb, stride_kh, stride_kl)
    v_strides = (stride_vb, stride_vh, stride_vl)
    dout_strides = (stride_gb, stride_gh, stride_gl, stride_gd)
    dq_strides = (stride_dqb, stride_dqh, stride_dql)
    dk_strides = (stride_dkb, stride_dkh, stride_dkl)
    dv_strides = (stride_dvb, stride_dvh, stride_dvl)
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    batch = tl.program_id(1)
    batches = tl.num_programs(1)
    program = tl.program_id(2)
    if program < key_tiles:
        index = program * BLOCK_N + tl.arange(0, BLOCK_N)
        if KEYS == "all":
            key = index
            keep = key < key_length
            inside = keep
        else:
            key = rows_of_slots(rows_ptr, rows_stride, batch, index, count)
            keep = key >= 0
            inside = index < count
            if KEYS == "rows":
                index = key
                inside = keep
        k_rows = row_pointers(k_ptr, k_strides, batch, kv_head, index, ALIGN)
        v_rows = row_pointers(v_ptr, v_strides, batch, kv_head, index, ALIGN)
        k = load_tile(k_rows, keep, HEAD_DIM, BLOCK_D)
        v = load_tile(v_rows, keep, HEAD_DIM, BLOCK_D)
        keep = allowed_keys(key, keep, mask_ptr, mask_stride, batch)
        bias = None
        if mask_ptr is not None and mask_ptr.dtype.element_ty == tl.float32:
            bias = key_biases(key, keep, mask_ptr, mask_stride, batch)
        used = count
        if RAGGED:
            used = used_slots(rows_ptr, rows_stride, batch, count, BLOCK_N)
        lse_ptr = stats_ptr + part_rows(0, batch, batches, kv_head, kv_heads, capacity, 0)
        delta_ptr = stats_ptr + part_rows(1, batch, batches, kv_head, kv_heads, capacity, 0)

        first_key = tl.min(tl.where(keep, key, key_length), axis=0)
        last_key = tl.max(tl.where(keep, key, -1), axis=0)
        scale_log2 = scale * LOG2E
        dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        # Read one step ahead: what a product needs within its own step, Triton 3.6 would copy
        # to shared memory element by element. The last step reads what lies behind.
        lse = tl.load(lse_ptr + tl.arange(0, BLOCK_M))
        delta = tl.load(delta_ptr + tl.arange(0, BLOCK_M))
        for first in range(0, used * group, BLOCK_M):
            virtual = first + tl.arange(0, BLOCK_M)
            slot = virtual // group
            row = rows_of_slots(rows_ptr, rows_stride, batch, slot, count)
            near = True
            if window is not None or block_size is not None:
                near = sees_any(row, first_key, last_key, window, block_size)
            if near:
                active = row >= 0
                head = kv_head * group + virtual % group
                index_q = slot if COMPACT_Q else row
                q_rows = row_pointers(q_ptr, q_strides, batch, head, index_q, ALIGN)
                g_rows = row_pointers(dout_ptr, dout_strides, batch, head, index_q, ALIGN)
                q = load_tile(q_rows, active, HEAD_DIM, BLOCK_D)
                dout = load_tile(g_rows, active, HEAD_DIM, BLOCK_D, column_stride=dout_strides[3])
                visible = is_visible(row[None, :], key[:, None], keep[:, None], window, block_size)
                s = row_products(k, q)
                p = probabilities(s, scale_log2, lse[None, :], visible, bias, KEY_AXIS=0)
                dv = add_dot(p.to(dout.dtype), dout, dv)
                ds = p * (row_products(v, dout) - delta[None, :])
                dk = add_dot(ds.to(q.dtype), q, dk)
            lse = tl.load(lse_ptr + virtual + BLOCK_M)
            delta = tl.load(delta_ptr + virtual + BLOCK_M)
        dk_rows = row_pointers(dk_ptr, dk_strides, batch, kv_head, index, ALIGN)
        dv_rows = row_pointers(dv_ptr, dv_strides, batch, kv_head, index, ALIGN)
        store_tile(dk_rows, dk * scale, inside, HEAD_DIM, BLOCK_D)
        store_tile(dv_rows, dv, inside, HEAD_DIM, BLOCK_D)
    elif program < key_tiles + sum_programs:
        if part_ptr is not None:
            sum_parts(
                program - key_tiles, part_ptr, parts, capacity, rows_ptr, rows_stride,
                dq_ptr, dq_strides, batch, batches, kv_head, kv_heads, count, group,
                COMPACT_DQ, HEAD_DIM, BLOCK_D, ALIGN, SUM_M,
            )  # fmt: skip
    elif KEYS == "rows":
        share = program - key_tiles - sum_programs
        shares = tl.num_programs(2) - key_tiles - sum_programs
        zero_other_rows(
            dk_ptr, dk_strides, batch, kv_head, 1, share, shares, key_length,
            rows_ptr, rows_stride, count, HEAD_DIM, BLOCK_D, ALIGN,
        )  # fmt: skip
        zero_other_rows(
            dv_ptr, dv_strides, batch, kv_head, 1, share, shares, key_length,
            rows_ptr, rows_stride, count, HEAD_DIM, BLOCK_D, ALIGN,
        )  # fmt: skip
