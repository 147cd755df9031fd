"""ActiveQueryAttention's forward: attention of all queries, with the log-sum-exp."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from boe_kernels._attention_launch import (
    bounded,
    ceil_div,
    constants,
    keys_per_step,
    mask_and_stride,
    strides,
    tiles_for,
)
from boe_kernels._rows import with_unit_stride
from boe_kernels._triton import launch
from boe_kernels._triton_attention import (
    LOG2E,
    allowed_keys,
    attend_tile,
    finish_softmax,
    is_visible,
    is_wide,
    key_biases,
)
from boe_kernels._triton_rows import (
    RUNTIME,
    UNALIGNED,
    load_tile,
    row_pointers,
    store_tile,
)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=UNALIGNED)
def fwd_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    mask_ptr,
    out_ptr,
    lse_ptr,
    stride_qb: tl.int64,
    stride_qh: tl.int64,
    stride_ql: tl.int64,
    stride_kb: tl.int64,
    stride_kh: tl.int64,
    stride_kl: tl.int64,
    stride_vb: tl.int64,
    stride_vh: tl.int64,
    stride_vl: tl.int64,
    mask_stride: tl.int64,
    stride_ob: tl.int64,
    stride_oh: tl.int64,
    stride_ol: tl.int64,
    scale,
    window,
    block_size,
    length,
    key_length,
    heads,
    group,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per tile of queries, query head and canvas.

    Nearly all key tiles are seen whole by every query of the tile, and need no mask.
    """
    q_strides = (stride_qb, stride_qh, stride_ql)
    k_strides = (stride_kb, stride_kh, stride_kl)
    v_strides = (stride_vb, stride_vh, stride_vl)
    out_strides = (stride_ob, stride_oh, stride_ol)
    first_row = tl.program_id(0) * BLOCK_M
    last_row = tl.minimum(first_row + BLOCK_M, length) - 1
    head = tl.program_id(1)
    kv_head = head // group
    batch = tl.program_id(2)
    row = first_row + tl.arange(0, BLOCK_M)
    inside = row < length
    q_rows = row_pointers(q_ptr, q_strides, batch, head, row, ALIGN)
    q = load_tile(q_rows, inside, HEAD_DIM, BLOCK_D)
    # The maximum of s·scale is that of s only where the scale is not negative.
    q = tl.where(scale < 0.0, -q, q)
    scale_log2 = tl.abs(scale) * LOG2E

    # For wide heads there is one loop: two would not fit the registers.
    MASKED: tl.constexpr = mask_ptr is not None or is_wide(q.dtype, BLOCK_D)
    # Keys in [begin, end) are seen by some query, those in [whole_begin, whole_end) by all.
    begin = 0
    end = key_length
    whole_begin = 0
    whole_end = key_length
    if window is not None:
        begin = tl.maximum(first_row - window, 0) // BLOCK_N * BLOCK_N
        end = tl.minimum(end, last_row + window + 1)
        whole_begin = tl.cdiv(tl.maximum(last_row - window, 0), BLOCK_N) * BLOCK_N
        whole_end = tl.minimum(whole_end, first_row + window + 1)
    if block_size is not None:
        end = tl.minimum(end, (last_row // block_size + 1) * block_size)
        whole_end = tl.minimum(whole_end, (first_row // block_size + 1) * block_size)
    whole_end = whole_end // BLOCK_N * BLOCK_N
    if window is not None:
        some_whole = whole_begin < whole_end
        whole_begin = tl.where(some_whole, whole_begin, begin)
        whole_end = tl.where(some_whole, whole_end, begin)
    if MASKED:
        whole_begin = begin
        whole_end = begin

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for stretch in tl.static_range(3):
        if stretch == 0:
            stretch_begin, stretch_end = begin, whole_begin
        elif stretch == 1:
            stretch_begin, stretch_end = whole_begin, whole_end
        else:
            stretch_begin, stretch_end = whole_end, end
        # Stretches that are always empty are left out of the binary.
        if stretch == 2 or (not MASKED and (stretch == 1 or window is not None)):
            for first_key in range(stretch_begin, stretch_end, BLOCK_N):
                key = first_key + tl.arange(0, BLOCK_N)
                keep = key < key_length
                k_rows = row_pointers(k_ptr, k_strides, batch, kv_head, key, ALIGN)
                v_rows = row_pointers(v_ptr, v_strides, batch, kv_head, key, ALIGN)
                k = load_tile(k_rows, keep, HEAD_DIM, BLOCK_D, stretch == 1)
                v = load_tile(v_rows, keep, HEAD_DIM, BLOCK_D, stretch == 1)
                visible = None
                bias = None
                if stretch != 1:
                    keep = allowed_keys(key, keep, mask_ptr, mask_stride, batch)
                    if mask_ptr is not None and mask_ptr.dtype.element_ty == tl.float32:
                        bias = key_biases(key, keep, mask_ptr, mask_stride, batch)
                    # What a bias hides needs no mask besides.
                    if bias is None or window is not None or block_size is not None:
                        visible = is_visible(
                            row[:, None], key[None, :], keep[None, :], window, block_size
                        )
                acc, top, total = attend_tile(q, k, v, visible, bias, acc, top, total, scale_log2)

    out, lse = finish_softmax(acc, top, total)
    out_rows = row_pointers(out_ptr, out_strides, batch, head, row, ALIGN)
    store_tile(out_rows, out, inside, HEAD_DIM, BLOCK_D)
    lse_start = (tl.cast(batch, tl.int64) * heads + head) * length
    tl.store(lse_ptr + lse_start + row, lse, mask=inside)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
) -> tuple[Tensor, Tensor]:
    """Output in the layout of q, and log-sum-exp float32 (B, Hq, L)."""
    q, k, v = (with_unit_stride(x) for x in (q, k, v))
    mask, mask_stride = mask_and_stride(key_mask)
    out = torch.empty_like(q)
    batch, heads, length, _ = q.shape
    lse = q.new_empty((batch, heads, length), dtype=torch.float32)
    hidden = window is not None or block_size is not None
    tile = tiles_for("forward", q, hidden)[0]
    launch(
        fwd_kernel,
        (ceil_div(length, tile.held), heads, batch),
        q,
        k,
        v,
        mask,
        out,
        lse,
        *strides(q),
        *strides(k),
        *strides(v),
        mask_stride,
        *strides(out),
        scale,
        bounded(window, k),
        bounded(block_size, k),
        length,
        k.shape[2],
        heads,
        heads // k.shape[1],
        **constants(q, k, v, out),
        BLOCK_M=tile.held,
        BLOCK_N=keys_per_step(tile, mask),
        **tile.options,
    )
    return out, lse
