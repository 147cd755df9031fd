"""Active-row attention's forward: few queries against keys that are live at their rows.

Nothing is merged in memory. A small kernel inverts the index set into the *slot map*, int32
(B or 1, L): which slot, if any, holds the live key of a position. Each program then reads
every key from where it lives.

Few queries make few programs, so the keys are cut into stretches, as many as occupy the
device; each leaves an unnormalised result with its maximum and its sum, and a third kernel
joins them in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from boe_kernels._attention_launch import (
    Cut,
    bounded,
    ceil_div,
    constants,
    index_set,
    keys_per_step,
    mask_and_stride,
    programs_wanted,
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
    key_biases,
    key_rows,
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
    slots_of_rows,
    store_tile,
)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=UNALIGNED)
def slot_map_kernel(
    rows_ptr,
    slots_ptr,
    rows_stride: tl.int64,
    slots_stride: tl.int64,
    count,
    key_length,
    BLOCK_R: tl.constexpr,
    BLOCK_A: tl.constexpr,
):
    """One program per tile of positions and canvas: the slot of each, or −1."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    batch = tl.program_id(1)
    slot = slots_of_rows(row, rows_ptr, rows_stride, batch, count, BLOCK_R, BLOCK_A)
    places = slots_ptr + tl.cast(batch, tl.int64) * slots_stride + row
    tl.store(places, slot, mask=row < key_length)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=UNALIGNED)
def rows_fwd_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    live_k_ptr,
    live_v_ptr,
    rows_ptr,
    slots_ptr,
    mask_ptr,
    out_ptr,
    lse_ptr,
    part_ptr,
    part_stats_ptr,
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
    rows_stride: tl.int64,
    slots_stride: tl.int64,
    mask_stride: tl.int64,
    stride_ob: tl.int64,
    stride_oh: tl.int64,
    stride_ol: tl.int64,
    scale,
    window,
    block_size,
    count,
    key_length,
    group,
    row_tiles,
    parts,
    stretch,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per key head, canvas, stretch of keys and tile of virtual rows."""
    q_strides = (stride_qb, stride_qh, stride_ql)
    k_strides = (stride_kb, stride_kh, stride_kl)
    v_strides = (stride_vb, stride_vh, stride_vl)
    live_k_strides = (stride_lkb, stride_lkh, stride_lkl)
    live_v_strides = (stride_lvb, stride_lvh, stride_lvl)
    out_strides = (stride_ob, stride_oh, stride_ol)
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    batch = tl.program_id(1)
    batches = tl.num_programs(1)
    tile = tl.program_id(2) % row_tiles
    part = tl.program_id(2) // row_tiles
    virtual = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    slot = virtual // group
    head = kv_head * group + virtual % group
    row = rows_of_slots(rows_ptr, rows_stride, batch, slot, count)
    q_rows = row_pointers(q_ptr, q_strides, batch, head, slot, ALIGN)
    q = load_tile(q_rows, row >= 0, HEAD_DIM, BLOCK_D)
    # The maximum of s·scale is that of s only where the scale is not negative.
    q = tl.where(scale < 0.0, -q, q)
    scale_log2 = tl.abs(scale) * LOG2E
    seen_begin, seen_end = seen_keys(row, key_length, window, block_size)
    seen_begin = tl.maximum(seen_begin, part * stretch) // BLOCK_N * BLOCK_N
    seen_end = tl.minimum(seen_end, (part + 1) * stretch)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first_key in range(seen_begin, seen_end, BLOCK_N):
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
        visible = visible & (row >= 0)[:, None]
        acc, top, total = attend_tile(q, k, v, visible, bias, acc, top, total, scale_log2)

    if part_ptr is None:
        out, lse = finish_softmax(acc, top, total)
        out_rows = row_pointers(out_ptr, out_strides, batch, head, slot, ALIGN)
        store_tile(out_rows, out, slot < count, HEAD_DIM, BLOCK_D)
        places = lse_ptr + (tl.cast(batch, tl.int64) * kv_heads * group + head) * count + slot
        tl.store(places, lse, mask=slot < count)
    else:
        capacity = row_tiles * BLOCK_M
        part_row = part_rows(part, batch, batches, kv_head, kv_heads, capacity, virtual)
        store_tile(part_ptr + part_row * BLOCK_D, acc, slot < count, BLOCK_D, BLOCK_D)
        tl.store(part_stats_ptr + part_row, top, mask=slot < count)
        part_row += tl.cast(parts, tl.int64) * batches * kv_heads * capacity
        tl.store(part_stats_ptr + part_row, total, mask=slot < count)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=UNALIGNED)
def join_parts_kernel(
    part_ptr,
    part_stats_ptr,
    out_ptr,
    lse_ptr,
    stride_ob: tl.int64,
    stride_oh: tl.int64,
    stride_ol: tl.int64,
    count,
    group,
    parts,
    capacity,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One program per key head, canvas and tile of virtual rows."""
    out_strides = (stride_ob, stride_oh, stride_ol)
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    batch = tl.program_id(1)
    batches = tl.num_programs(1)
    virtual = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    slot = virtual // group
    head = kv_head * group + virtual % group
    keep = slot < count
    totals = tl.cast(parts, tl.int64) * batches * kv_heads * capacity
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    for first in range(0, parts, PARTS_AT_ONCE):
        for ahead in tl.static_range(PARTS_AT_ONCE):
            part = first + ahead
            part_row = part_rows(part, batch, batches, kv_head, kv_heads, capacity, virtual)
            present = virtual < tl.where(part < parts, count * group, 0)
            part_top = tl.load(part_stats_ptr + part_row, mask=present, other=-float("inf"))
            top = tl.maximum(top, part_top)
    base = tl.where(top == -float("inf"), 0.0, top)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, parts, PARTS_AT_ONCE):
        for ahead in tl.static_range(PARTS_AT_ONCE):
            part = first + ahead
            part_row = part_rows(part, batch, batches, kv_head, kv_heads, capacity, virtual)
            present = virtual < tl.where(part < parts, count * group, 0)
            part_top = tl.load(part_stats_ptr + part_row, mask=present, other=-float("inf"))
            part_total = tl.load(part_stats_ptr + totals + part_row, mask=present, other=0.0)
            tile = load_tile(part_ptr + part_row * BLOCK_D, present, BLOCK_D, BLOCK_D)
            weight = tl.exp2(part_top - base)
            acc += tile * weight[:, None]
            total += part_total * weight
    out, lse = finish_softmax(acc, top, total)
    out_rows = row_pointers(out_ptr, out_strides, batch, head, slot, ALIGN)
    store_tile(out_rows, out, keep, HEAD_DIM, BLOCK_D)
    places = lse_ptr + (tl.cast(batch, tl.int64) * kv_heads * group + head) * count + slot
    tl.store(places, lse, mask=keep)


_POSITIONS, _SLOTS = 64, 64
"""Tile of the kernel of the slot map."""

_ROWS_TO_JOIN = 16
"""Virtual rows per program that joins parts."""


def slot_map(rows: Tensor, rows_stride: int, length: int) -> Tensor:
    """int32 (B or 1, L): the slot that names each row, or −1."""
    slots = rows.new_empty((rows.shape[0], length), dtype=torch.int32)
    launch(
        slot_map_kernel,
        (ceil_div(length, _POSITIONS), rows.shape[0]),
        rows,
        slots,
        rows_stride,
        length,
        rows.shape[1],
        length,
        BLOCK_R=_POSITIONS,
        BLOCK_A=_SLOTS,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return slots


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output in the layout of q_rows, log-sum-exp float32 (B, Hq, A), and two empty tensors.

    They are where the library path leaves merged keys and values; here nothing is merged.
    """
    q_rows, k_rows, v_rows, k, v = (with_unit_stride(x) for x in (q_rows, k_rows, v_rows, k, v))
    rows, rows_stride = index_set(rows)
    mask, mask_stride = mask_and_stride(key_mask)
    batch, heads, count, _ = q_rows.shape
    kv_heads, key_length = k.shape[1:3]
    group = heads // kv_heads
    out = torch.empty_like(q_rows)
    lse = q_rows.new_empty((batch, heads, count), dtype=torch.float32)
    shape = constants(q_rows, k_rows, v_rows, k, v, out)
    slots = slot_map(rows, rows_stride, key_length)
    tile = tiles_for("rows_forward", q_rows, window is not None or block_size is not None)[0]
    row_tiles = max(1, ceil_div(count * group, tile.held))
    capacity = row_tiles * tile.held
    wanted = programs_wanted(q_rows, tile)
    # Of wide heads it is the output that takes the registers.
    streamed = keys_per_step(tile, mask) if q_rows.shape[-1] <= 128 else tile.streamed
    cut = Cut.of(key_length, wanted / (kv_heads * row_tiles), streamed)
    parts = part_stats = None
    if cut.parts > 1:
        parts = q_rows.new_empty(
            (cut.parts, batch, kv_heads, capacity, shape["BLOCK_D"]), dtype=torch.float32
        )
        part_stats = q_rows.new_empty(
            (2, cut.parts, batch, kv_heads, capacity), dtype=torch.float32
        )
    launch(
        rows_fwd_kernel,
        (kv_heads, batch, row_tiles * cut.parts),
        q_rows,
        k,
        v,
        k_rows,
        v_rows,
        rows,
        slots,
        mask,
        out,
        lse,
        parts,
        part_stats,
        *strides(q_rows),
        *strides(k),
        *strides(v),
        *strides(k_rows),
        *strides(v_rows),
        rows_stride,
        0 if slots.shape[0] == 1 else key_length,
        mask_stride,
        *strides(out),
        scale,
        bounded(window, k),
        bounded(block_size, k),
        count,
        key_length,
        group,
        row_tiles,
        cut.parts,
        cut.stretch,
        **shape,
        BLOCK_M=tile.held,
        BLOCK_N=streamed,
        **tile.options,
    )
    if parts is not None:
        launch(
            join_parts_kernel,
            (kv_heads, batch, ceil_div(count * group, _ROWS_TO_JOIN)),
            parts,
            part_stats,
            out,
            lse,
            *strides(out),
            count,
            group,
            cut.parts,
            capacity,
            **shape,
            BLOCK_M=_ROWS_TO_JOIN,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out, lse, q_rows.new_empty(0), q_rows.new_empty(0)
