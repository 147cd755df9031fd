"""The backward of few active rows: keys and values are read once.

With P = exp(s − lse), dP = dO·vᵀ, δ = Σ dO·O and dS = P ∘ (dP − δ):

    dV = Pᵀ dO,    dK = scale·dSᵀ q,    dQ = scale·dS k.

A program holds all virtual rows of a key head in one tile and walks through a stretch of
the keys. Each key tile gives its dK and dV at once; dQ stays in registers until the end of
the stretch. Where there are several stretches, each leaves a part of dQ in float32, and a
second kernel adds the parts in order: nothing depends on the order in which programs run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from boe_kernels._attention_launch import (
    Cut,
    Tile,
    bounded,
    ceil_div,
    constants,
    has_asynchronous_products,
    programs_wanted,
    strides,
)
from boe_kernels._triton import launch
from boe_kernels._triton_attention import (
    LOG2E,
    add_dot,
    allowed_keys,
    dot,
    is_visible,
    key_biases,
    load_lse,
    load_queries,
    probabilities,
    row_products,
    seen_keys,
)
from boe_kernels._triton_rows import (
    ROWS_TO_ZERO,
    RUNTIME,
    UNALIGNED,
    load_tile,
    row_pointers,
    rows_of_slots,
    store_tile,
    zero_other_rows,
)
from boe_kernels.query_attention.triton.query_gradient import (
    ROWS_TO_SUM,
    bwd_sum_parts_kernel,
    store_dq,
)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=UNALIGNED)
def bwd_one_pass_kernel(
    dout_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    rows_ptr,
    mask_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
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
    stride_ob: tl.int64,
    stride_oh: tl.int64,
    stride_ol: tl.int64,
    rows_stride: tl.int64,
    mask_stride: tl.int64,
    stride_dqb: tl.int64,
    stride_dqh: tl.int64,
    stride_dql: tl.int64,
    stride_dkb: tl.int64,
    stride_dkh: tl.int64,
    stride_dkl: tl.int64,
    stride_dvb: tl.int64,
    stride_dvh: tl.int64,
    stride_dvl: tl.int64,
    scale,
    window,
    block_size,
    count,
    length,
    key_length,
    group,
    parts,
    stretch,
    COMPACT_DQ: tl.constexpr,
    DQ_FIRST: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per key head, canvas and stretch of keys.

    Further programs write zeros to the other rows of dQ. COMPACT_DQ: dQ is stored by slot,
    and there are no other rows. DQ_FIRST: its product comes before that of dK. As the last one
    it would be awaited in the next step only where products are asynchronous (sm_90), and
    then the assembler has every product of the loop wait for the one before it; elsewhere the
    other order takes fewer registers. No bit depends on it.
    """
    q_strides = (stride_qb, stride_qh, stride_ql)
    k_strides = (stride_kb, stride_kh, stride_kl)
    v_strides = (stride_vb, stride_vh, stride_vl)
    out_strides = (stride_ob, stride_oh, stride_ol)
    dout_strides = (stride_gb, stride_gh, stride_gl, stride_gd)
    dq_strides = (stride_dqb, stride_dqh, stride_dql)
    dk_strides = (stride_dkb, stride_dkh, stride_dkl)
    dv_strides = (stride_dvb, stride_dvh, stride_dvl)
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    batch = tl.program_id(1)
    batches = tl.num_programs(1)
    part = tl.program_id(2)
    if part < parts:
        virtual = tl.arange(0, BLOCK_M)
        slot = virtual // group
        head = kv_head * group + virtual % group
        row = rows_of_slots(rows_ptr, rows_stride, batch, slot, count)
        active = row >= 0
        q, dout, delta = load_queries(
            q_ptr, q_strides, dout_ptr, dout_strides, out_ptr, out_strides,
            batch, head, row, active, HEAD_DIM, BLOCK_D, ALIGN,
        )  # fmt: skip
        lse = load_lse(lse_ptr, batch, head, kv_heads * group, length, row, active)
        scale_log2 = scale * LOG2E
        # Key tiles that no row sees are not read: their gradients are zeros all the same.
        seen_begin, seen_end = seen_keys(row, key_length, window, block_size)
        begin = part * stretch
        end = tl.minimum(begin + stretch, key_length)
        dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for first_key in range(begin, end, BLOCK_N):
            key = first_key + tl.arange(0, BLOCK_N)
            inside = key < key_length
            seen = (key >= seen_begin) & (key < seen_end)
            k_rows = row_pointers(k_ptr, k_strides, batch, kv_head, key, ALIGN)
            v_rows = row_pointers(v_ptr, v_strides, batch, kv_head, key, ALIGN)
            k = load_tile(k_rows, seen, HEAD_DIM, BLOCK_D)
            v = load_tile(v_rows, seen, HEAD_DIM, BLOCK_D)
            seen = allowed_keys(key, seen, mask_ptr, mask_stride, batch)
            bias = None
            if mask_ptr is not None and mask_ptr.dtype.element_ty == tl.float32:
                bias = key_biases(key, seen, mask_ptr, mask_stride, batch)
            visible = is_visible(row[:, None], key[None, :], seen[None, :], window, block_size)
            p = probabilities(row_products(q, k), scale_log2, lse[:, None], visible, bias)
            dv = dot(tl.trans(p.to(dout.dtype)), dout)
            dv_rows = row_pointers(dv_ptr, dv_strides, batch, kv_head, key, ALIGN)
            store_tile(dv_rows, dv, inside, HEAD_DIM, BLOCK_D)
            ds = (p * (row_products(dout, v) - delta[:, None])).to(q.dtype)
            if DQ_FIRST:
                dq = add_dot(ds, k, dq)
            dk = dot(tl.trans(ds), q) * scale
            dk_rows = row_pointers(dk_ptr, dk_strides, batch, kv_head, key, ALIGN)
            store_tile(dk_rows, dk, inside, HEAD_DIM, BLOCK_D)
            if not DQ_FIRST:
                dq = add_dot(ds, k, dq)
        store_dq(
            dq * scale, dq_ptr, dq_strides, part_ptr, part, batch, batches, kv_head, kv_heads,
            BLOCK_M, group, count, virtual, row, COMPACT_DQ, HEAD_DIM, BLOCK_D, ALIGN,
        )  # fmt: skip
    elif not COMPACT_DQ:
        zero_other_rows(
            dq_ptr, dq_strides, batch, kv_head * group, group,
            part - parts, tl.num_programs(2) - parts, length,
            rows_ptr, rows_stride, count, HEAD_DIM, BLOCK_D, ALIGN,
        )  # fmt: skip


def one_pass(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    rows_stride: int,
    mask: Tensor | None,
    mask_stride: int,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    scale: float,
    window: int | None,
    block_size: int | None,
    compact_dq: bool,
    tiles: Sequence[Tile],
) -> None:
    """Fill dq, dk and dv. ``tiles``: those that hold all virtual rows."""
    batch, heads, length, _ = q.shape
    kv_heads, key_length = k.shape[1:3]
    group, count = heads // kv_heads, rows.shape[1]
    tile = min(tiles, key=lambda tile: tile.held)
    cut = Cut.of(key_length, programs_wanted(q, tile) / kv_heads, tile.streamed)
    shape = constants(q, k, v, out, dout, dq, dk, dv)
    parts = None
    if cut.parts > 1:
        parts = q.new_empty(
            (cut.parts, batch, kv_heads, tile.held, shape["BLOCK_D"]), dtype=torch.float32
        )
    zero_programs = 0 if compact_dq else ceil_div(length, ROWS_TO_ZERO)
    launch(
        bwd_one_pass_kernel,
        (kv_heads, batch, cut.parts + zero_programs),
        dout,
        q,
        k,
        v,
        out,
        lse,
        rows,
        mask,
        dq,
        dk,
        dv,
        parts,
        *dout.stride(),
        *strides(q),
        *strides(k),
        *strides(v),
        *strides(out),
        rows_stride,
        mask_stride,
        *strides(dq),
        *strides(dk),
        *strides(dv),
        scale,
        bounded(window, k),
        bounded(block_size, k),
        count,
        length,
        key_length,
        group,
        cut.parts,
        cut.stretch,
        COMPACT_DQ=compact_dq,
        DQ_FIRST=has_asynchronous_products(q),
        **shape,
        BLOCK_M=tile.held,
        BLOCK_N=tile.streamed,
        **tile.options,
    )
    if parts is not None:
        launch(
            bwd_sum_parts_kernel,
            (kv_heads, batch, ceil_div(count * group, ROWS_TO_SUM)),
            parts,
            rows,
            dq,
            rows_stride,
            *strides(dq),
            count,
            group,
            cut.parts,
            tile.held,
            COMPACT_DQ=compact_dq,
            **shape,
            BLOCK_M=ROWS_TO_SUM,
            num_warps=4,
            enable_fp_fusion=True,
        )
