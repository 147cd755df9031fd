"""Device code for tiles of rows: where they lie, which rows an index set names.

Kernels that work on given query rows pack the query heads that share a key head: *virtual
row* r of a key head is query head r % group of slot r // group of the index set. A tile of
virtual rows is full even where few rows are active, keys and values are read once for all
heads of the group, and padding at the end of an index set lies at the end.

Strides are passed on as tuples (batch, head, row); columns are adjacent. ``ALIGN`` is a number of
elements that divides every stride (the launchers see to it), so that each row starts where
16 bytes may be read at once. Offsets of batch, head and row are 64-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

RUNTIME = (
    *(f"stride_{x}{of}" for x in ("q", "k", "v", "lk", "lv", "o", "g") for of in "bhl"),
    *(f"stride_{x}{of}" for x in ("dq", "dk", "dv") for of in "bhl"),
    *(f"{name}_stride" for name in ("rows", "slots", "mask")),
    *("window", "block_size", "count", "length", "key_length", "heads", "group"),
    *("row_tiles", "key_tiles", "sum_programs", "parts", "stretch", "capacity"),
)
"""Arguments that change from call to call and must not be compiled into a binary."""

UNALIGNED = ("rows_ptr", "slots_ptr", "mask_ptr", "lse_ptr", "weights_ptr")
"""Pointers whose alignment makes no difference, and no binary of its own."""

PARTS_AT_ONCE: tl.constexpr = tl.constexpr(4)
"""Loops over parts are written out for so many, so that as many reads are on their way."""

ROWS_TO_ZERO = 128
"""Rows that a program fills with zeros where the index set does not name them."""


# --- tiles --------------------------------------------------------------------------


@triton.jit
def row_pointers(base, strides, batch, head, index, ALIGN: tl.constexpr):
    """Pointers to rows ``index`` (N,) of one head, a scalar, or of a head for each row."""
    offset = tl.cast(batch, tl.int64) * strides[0] + tl.cast(head, tl.int64) * strides[1]
    return base + tl.multiple_of(offset + index.to(tl.int64) * strides[2], ALIGN)


@triton.jit
def load_tile(
    pointers,
    keep,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr = False,
    column_stride=1,
):
    """Rows (N, BLOCK_D) with zeros where not kept and past HEAD_DIM.

    WHOLE: every row is kept.
    """
    columns = tl.arange(0, BLOCK_D)
    places = pointers[:, None] + (columns * column_stride)[None, :]
    if HEAD_DIM != BLOCK_D:
        inside = (columns < HEAD_DIM)[None, :]
        if not WHOLE:
            inside = inside & keep[:, None]
        tile = tl.load(places, mask=inside, other=0.0)
    elif WHOLE:
        tile = tl.load(places)
    else:
        tile = tl.load(places, mask=keep[:, None], other=0.0)
    return tile


@triton.jit
def store_tile(pointers, tile, keep, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write the kept rows of a tile in the element type of the pointers."""
    columns = tl.arange(0, BLOCK_D)
    inside = keep[:, None]
    if HEAD_DIM != BLOCK_D:
        inside = inside & (columns < HEAD_DIM)[None, :]
    places = pointers[:, None] + columns[None, :]
    tl.store(places, tile.to(pointers.dtype.element_ty), mask=inside)


# --- index sets ---------------------------------------------------------------------


@triton.jit
def rows_of_slots(rows_ptr, rows_stride, batch, slot, count):
    """The rows that slots (N,) of a canvas name, int32; −1 at padding and past the end."""
    places = rows_ptr + tl.cast(batch, tl.int64) * rows_stride + slot
    return tl.load(places, mask=slot < count, other=-1).to(tl.int32)


@triton.jit
def used_slots(rows_ptr, rows_stride, batch, count, BLOCK_A: tl.constexpr):
    """How many slots there are up to the last that is no padding."""
    used = tl.zeros([BLOCK_A], tl.int32)
    for first in range(0, count, BLOCK_A):
        slot = first + tl.arange(0, BLOCK_A)
        row = rows_of_slots(rows_ptr, rows_stride, batch, slot, count)
        used = tl.where(row >= 0, slot + 1, used)
    return tl.max(used)


@triton.jit
def slots_of_rows(
    row, rows_ptr, rows_stride, batch, count, BLOCK_R: tl.constexpr, BLOCK_A: tl.constexpr
):
    """The slots that name the rows (BLOCK_R,), each named at most once; −1 where none does."""
    found = tl.full([BLOCK_R], -1, tl.int32)
    for first in range(0, count, BLOCK_A):
        slot = first + tl.arange(0, BLOCK_A)
        named = rows_of_slots(rows_ptr, rows_stride, batch, slot, count)
        hits = tl.where(row[:, None] == named[None, :], slot[None, :], -1)
        found = tl.maximum(found, tl.max(hits, axis=1))
    return found


@triton.jit
def zero_other_rows(
    base,
    strides,
    batch,
    first_head,
    heads,
    share,
    shares,
    length,
    rows_ptr,
    rows_stride,
    count,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr = 32,
    BLOCK_A: tl.constexpr = 64,
):
    """Write zeros to a share of the rows of some heads: those that the index set does not name.

    Those that it names are left alone: other programs write them at the same time.
    """
    rows_per_share = tl.cdiv(length, shares)
    begin = share * rows_per_share
    end = tl.minimum(begin + rows_per_share, length)
    zeros = tl.zeros([BLOCK_R, BLOCK_D], base.dtype.element_ty)
    for first in range(begin, end, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        slot = slots_of_rows(row, rows_ptr, rows_stride, batch, count, BLOCK_R, BLOCK_A)
        keep = (slot < 0) & (row < end)
        for head in range(first_head, first_head + heads):
            places = row_pointers(base, strides, batch, head, row, ALIGN)
            store_tile(places, zeros, keep, HEAD_DIM, BLOCK_D)


# --- parts --------------------------------------------------------------------------


@triton.jit
def part_rows(part, batch, batches, kv_head, kv_heads, capacity, virtual):
    """Numbers of virtual rows in (part, canvas, key head, capacity)."""
    place = (tl.cast(part, tl.int64) * batches + batch) * kv_heads + kv_head
    return place * capacity + virtual
