"""The attention mass as a Triton kernel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from boe_kernels._attention_launch import (
    DTYPES_AND_HEAD_DIMS,
    bounded,
    ceil_div,
    constants,
    index_set,
    mask_and_stride,
    strides,
    tiles_for,
)
from boe_kernels._rows import with_unit_stride
from boe_kernels._triton import AotCase, launch
from boe_kernels._triton_attention import (
    LOG2E,
    allowed_keys,
    is_visible,
    key_biases,
    load_lse,
    probabilities,
    row_products,
    sees_any,
)
from boe_kernels._triton_rows import (
    RUNTIME,
    UNALIGNED,
    load_tile,
    row_pointers,
    rows_of_slots,
    used_slots,
)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=UNALIGNED)
def mass_kernel(
    q_ptr,
    k_ptr,
    lse_ptr,
    weights_ptr,
    rows_ptr,
    mask_ptr,
    mass_ptr,
    stride_qb: tl.int64,
    stride_qh: tl.int64,
    stride_ql: tl.int64,
    stride_kb: tl.int64,
    stride_kh: tl.int64,
    stride_kl: tl.int64,
    rows_stride: tl.int64,
    mask_stride: tl.int64,
    scale,
    window,
    block_size,
    count,
    key_length,
    group,
    RAGGED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per key head, canvas and tile of keys, through all virtual rows.

    The probabilities of successive tiles of rows are added elementwise, and over the rows
    of a tile only once at the end: in an order that depends on nothing.
    """
    q_strides = (stride_qb, stride_qh, stride_ql)
    k_strides = (stride_kb, stride_kh, stride_kl)
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    batch = tl.program_id(1)
    key = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = key < key_length
    k_rows = row_pointers(k_ptr, k_strides, batch, kv_head, key, ALIGN)
    k = load_tile(k_rows, inside, HEAD_DIM, BLOCK_D)
    keep = allowed_keys(key, inside, mask_ptr, mask_stride, batch)
    bias = None
    if mask_ptr is not None and mask_ptr.dtype.element_ty == tl.float32:
        bias = key_biases(key, inside, mask_ptr, mask_stride, batch)
    used = count
    if RAGGED:
        used = used_slots(rows_ptr, rows_stride, batch, count, BLOCK_N)
    first_key = tl.program_id(2) * BLOCK_N
    scale_log2 = scale * LOG2E
    mass = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, used * group, BLOCK_M):
        virtual = first + tl.arange(0, BLOCK_M)
        slot = virtual // group
        if rows_ptr is None:
            row = tl.where(slot < count, slot, -1)
        else:
            row = rows_of_slots(rows_ptr, rows_stride, batch, slot, count)
        near = True
        if window is not None or block_size is not None:
            near = sees_any(row, first_key, first_key + BLOCK_N - 1, window, block_size)
        if near:
            active = row >= 0
            head = kv_head * group + virtual % group
            q_rows = row_pointers(q_ptr, q_strides, batch, head, slot, ALIGN)
            q = load_tile(q_rows, active, HEAD_DIM, BLOCK_D)
            lse = load_lse(lse_ptr, batch, head, kv_heads * group, count, slot, active)
            visible = is_visible(row[:, None], key[None, :], keep[None, :], window, block_size)
            s = row_products(q, k)
            visible = visible & (lse < float("inf"))[:, None]
            p = probabilities(s, scale_log2, lse[:, None], visible, bias, CAPPED=False)
            if weights_ptr is not None:
                weights = weights_ptr + tl.cast(batch, tl.int64) * count + slot
                p *= tl.load(weights, mask=active, other=0.0)[:, None]
            mass += p
    place = (tl.cast(batch, tl.int64) * kv_heads + kv_head) * key_length + key
    tl.store(mass_ptr + place, tl.sum(mass, axis=0), mask=inside)


def forward(
    q_rows: Tensor,
    k: Tensor,
    lse_rows: Tensor,
    weights: Tensor | None,
    rows: Tensor | None,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
) -> Tensor:
    """(B, Lk) float32: the keys' shares of the rows' attention."""
    q_rows, k = with_unit_stride(q_rows), with_unit_stride(k)
    rows, rows_stride = (None, 0) if rows is None else index_set(rows)
    mask, mask_stride = mask_and_stride(key_mask)
    batch, heads, count, _ = q_rows.shape
    kv_heads, key_length = k.shape[1:3]
    hidden = window is not None or block_size is not None
    tile = tiles_for("mass", q_rows, hidden)[0]
    of_heads = k.new_empty((batch, kv_heads, key_length), dtype=torch.float32)
    launch(
        mass_kernel,
        (kv_heads, batch, ceil_div(key_length, tile.held)),
        q_rows,
        k,
        lse_rows.to(torch.float32).contiguous(),
        None if weights is None else weights.to(torch.float32).contiguous(),
        rows,
        mask,
        of_heads,
        *strides(q_rows),
        *strides(k),
        rows_stride,
        mask_stride,
        scale,
        bounded(window, k),
        bounded(block_size, k),
        count,
        key_length,
        heads // kv_heads,
        RAGGED=rows_stride != 0,
        **constants(q_rows, k),
        BLOCK_M=tile.streamed,
        BLOCK_N=tile.held,
        **tile.options,
    )
    return of_heads.sum(dim=1)


def aot_cases() -> Iterator[AotCase]:
    """Element and head widths, all keys seen or not."""
    hiding = ((None, False), (64, False), (64, True))
    for (dtype, width), (window, biased) in product(DTYPES_AND_HEAD_DIMS, hiding):
        sample = dtype == torch.bfloat16 and width == 256 and biased
        q_rows, k = (torch.empty(2, 8, n, width, dtype=dtype, device="meta") for n in (64, 1024))
        weights = torch.empty(2, 64, device="meta")
        lse, rows = weights[:, None].expand(-1, 8, -1), weights.to(torch.int64)
        mask = torch.empty(2, 1024, device="meta") if biased else None
        call = partial(forward, q_rows, k, lse, weights, rows, mask, 0.1, window, None)
        what = f"{str(dtype).removeprefix('torch.')}, {width}, window {window}"
        yield AotCase(what + (", bias" if biased else ""), call, sample)
