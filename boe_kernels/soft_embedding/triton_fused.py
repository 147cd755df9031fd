"""The dense soft write with the product, the softmax and the write in one Triton kernel.

ẽ = Σ_v p_v E_v is attention with the table as values: a program holds a tile of rows and of
embedding dimensions, walks through the ids, and weighs each step's table rows by e^(z − m),
m being the largest logit so far, or by the probabilities as they are. Neither ẽ nor the
probabilities of logits are ever in memory.

Few rows make few programs, so the ids are cut into parts; each leaves an unnormalised sum,
its maximum and its mass in float32, and a second kernel adds them up in a fixed order. The
last step, here or there, writes e_m + α(ẽ − e_m) into the canvas rows, and Δe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from boe_kernels._attention_launch import ceil_div, index_set
from boe_kernels._rows import with_unit_stride
from boe_kernels._triton import AotCase, launch
from boe_kernels._triton_attention import INFINITY, LOG2E, add_dot
from boe_kernels.soft_embedding.fused_launch import LEAST_PART, MOST_PARTS, cut_of, tile_for
from boe_kernels.soft_embedding.triton import write_rows

_RUNTIME = ["stride_rows", "n_rows", "n_slots", "part_steps", "n_parts", "length"]
# What divides both is told by ALIGN: of a batch of rows more than that may be divisible.
_STRIDES = ["stride_batch", "stride_slot"]
SMALLEST_CUT = 2 * LEAST_PART
"""Ids of the smallest vocabulary that is cut; a larger one runs the same binaries."""
_JOIN_WIDTH = 128
_JOIN_WARPS = 4


@triton.jit
def _finite(peak):
    """What to subtract from logits whose largest is ``peak``: −∞ − −∞ would be NaN."""
    return tl.where(peak == -INFINITY, 0.0, peak)


@triton.jit(
    do_not_specialize=[*_RUNTIME, *_STRIDES],
    do_not_specialize_on_alignment=["rows_ptr", "stats_ptr"],
)
def _product_kernel(
    values_ptr,
    table_ptr,
    rows_ptr,
    mask_embed_ptr,
    canvas_ptr,
    delta_ptr,
    sums_ptr,
    stats_ptr,
    stride_batch: tl.int64,
    stride_slot: tl.int64,
    stride_table: tl.int64,
    stride_rows: tl.int64,
    n_rows: tl.int32,
    n_slots: tl.int32,
    n_ids: tl.int32,
    part_steps: tl.int32,
    length: tl.int32,
    width: tl.int32,
    alpha: tl.float32,
    IS_LOGITS: tl.constexpr,
    SPLIT: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_IDS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """One program per tile of rows, block of dimensions and part of the ids.

    The rows of all canvases are numbered through, in ``slot``. With logits, for every row

        m' = max(m, max z),  l ← l·e^(m − m') + Σ e^(z − m'),  s ← s·e^(m − m') + Σ e^(z − m')·E

    and ẽ = s / l. The mass l is that of the weights as they are rounded for the product.
    """
    slot = tl.program_id(0) * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    present = slot < n_slots
    batch = slot // n_rows
    row = slot % n_rows
    position = tl.load(rows_ptr + batch * stride_rows + row, mask=present, other=-1)
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    wanted = columns < width
    part = tl.program_id(2)
    # Counted in steps, so that the compiler knows that loads of logits are aligned.
    first = part * part_steps * BLOCK_IDS
    end = tl.minimum(first + part_steps * BLOCK_IDS, n_ids)
    # A tile of padding reads nothing.
    end = tl.where(tl.max(position, axis=0) >= 0, end, first)
    offset = batch.to(tl.int64) * stride_batch + row * stride_slot
    sources = values_ptr + tl.multiple_of(offset, ALIGN)[:, None]
    peak = tl.full((BLOCK_SLOTS,), -INFINITY, tl.float32)
    mass = tl.zeros((BLOCK_SLOTS,), tl.float32)
    total = tl.zeros((BLOCK_SLOTS, BLOCK_WIDTH), tl.float32)
    for start in range(first, end, BLOCK_IDS):
        ids = start + tl.arange(0, BLOCK_IDS)
        known = ids < n_ids
        given = (position >= 0)[:, None] & known[None, :]
        embeds = tl.load(
            table_ptr + ids.to(tl.int64)[:, None] * stride_table + columns[None, :],
            mask=known[:, None] & wanted[None, :],
            other=0.0,
        )
        if IS_LOGITS:
            logits = tl.load(sources + ids[None, :], mask=given, other=-INFINITY).to(tl.float32)
            new_peak = tl.maximum(peak, tl.max(logits, axis=1))
            base = _finite(new_peak)
            scale = tl.exp2((peak - base) * LOG2E)
            weights = tl.exp2((logits - base[:, None]) * LOG2E).to(table_ptr.dtype.element_ty)
            mass = mass * scale + tl.sum(weights.to(tl.float32), axis=1)
            total = total * scale[:, None]
            peak = new_peak
        else:
            weights = tl.load(sources + ids[None, :], mask=given, other=0.0)
            weights = weights.to(table_ptr.dtype.element_ty)
        total = add_dot(weights, embeds, total)

    inside = present[:, None] & wanted[None, :]
    if SPLIT:
        here = part.to(tl.int64) * n_slots + slot
        tl.store(sums_ptr + here[:, None] * width + columns[None, :], total, mask=inside)
        if IS_LOGITS:
            # They are the same in every block of dimensions: the first one's are kept.
            kept = slot < tl.where(tl.program_id(1) == 0, n_slots, 0)
            tl.store(stats_ptr + here, peak, mask=kept)
            plane = tl.num_programs(2).to(tl.int64) * n_slots
            tl.store(stats_ptr + plane + here, mass, mask=kept)
    else:
        expected = total / mass[:, None] if IS_LOGITS else total
        base = tl.load(mask_embed_ptr + columns, mask=wanted, other=0.0).to(tl.float32)
        write_rows(
            expected,
            tl.broadcast_to(base[None, :], (BLOCK_SLOTS, BLOCK_WIDTH)),
            position[:, None],
            slot[:, None],
            batch[:, None],
            columns[None, :],
            inside,
            canvas_ptr,
            delta_ptr,
            length,
            width,
            alpha,
        )


@triton.jit(do_not_specialize=_RUNTIME, do_not_specialize_on_alignment=["rows_ptr", "stats_ptr"])
def _join_kernel(
    sums_ptr,
    stats_ptr,
    rows_ptr,
    mask_embed_ptr,
    canvas_ptr,
    delta_ptr,
    stride_rows: tl.int64,
    n_rows: tl.int32,
    n_slots: tl.int32,
    n_parts: tl.int32,
    length: tl.int32,
    width: tl.int32,
    alpha: tl.float32,
    IS_LOGITS: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """One program per row to write and block of dimensions: the parts' sums, and the write."""
    slot = tl.program_id(0)
    batch = slot // n_rows
    position = tl.load(rows_ptr + batch * stride_rows + slot % n_rows)
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    wanted = columns < width
    part = tl.arange(0, MOST_PARTS)
    # Padding reads nothing.
    used = part < tl.where(position >= 0, n_parts, 0)
    here = part.to(tl.int64) * n_slots + slot
    source = sums_ptr + here[:, None] * width + columns[None, :]
    sums = tl.load(source, mask=used[:, None] & wanted[None, :], other=0.0)
    if IS_LOGITS:
        peaks = tl.load(stats_ptr + here, mask=used, other=-INFINITY)
        plane = n_parts.to(tl.int64) * n_slots
        masses = tl.load(stats_ptr + plane + here, mask=used, other=0.0)
        scale = tl.exp2((peaks - _finite(tl.max(peaks, axis=0))) * LOG2E)
        expected = tl.sum(sums * scale[:, None], axis=0) / tl.sum(masses * scale, axis=0)
    else:
        expected = tl.sum(sums, axis=0)
    base = tl.load(mask_embed_ptr + columns, mask=wanted, other=0.0).to(tl.float32)
    write_rows(
        expected,
        base,
        position,
        slot,
        batch,
        columns,
        wanted,
        canvas_ptr,
        delta_ptr,
        length,
        width,
        alpha,
    )


def forward(
    embeds: Tensor,
    rows: Tensor,
    probs_or_logits: Tensor,
    table: Tensor,
    mask_embed: Tensor,
    alpha: float,
    top_k: int | None,
    is_logits: bool,
) -> tuple[Tensor, Tensor]:
    """The injected canvas and Δe, both contiguous."""
    if top_k is not None:
        raise ValueError("the fused soft write is of the dense form: it takes no top_k")
    batch, length, width = embeds.shape
    n_rows = rows.shape[1]
    n_slots = batch * n_rows
    canvas = embeds.clone(memory_format=torch.contiguous_format)
    delta = embeds.new_empty(batch, n_rows, width)
    rows, stride_rows = index_set(rows)
    values = probs_or_logits
    if values.dtype == torch.float64:
        values = values.to(torch.float32)
    values, table = with_unit_stride(values), with_unit_stride(table)
    tile = tile_for(table)
    cut = cut_of(table, tile)
    split = cut.parts > 1
    block_width = tile.width if split else tile.writing_width
    written_to = (rows, mask_embed.contiguous(), canvas, delta)
    # Without parts these stand in for tensors that are not touched.
    sums, stats = delta, delta
    if split:
        sums = embeds.new_empty(cut.parts, n_slots, width, dtype=torch.float32)
        stats = embeds.new_empty(2, cut.parts, n_slots, dtype=torch.float32)
    launch(
        _product_kernel,
        (ceil_div(n_slots, tile.slots), ceil_div(width, block_width), cut.parts),
        values,
        table,
        *written_to,
        sums,
        stats,
        values.stride(0),
        values.stride(1),
        table.stride(0),
        stride_rows,
        n_rows,
        n_slots,
        table.shape[0],
        cut.stretch // tile.ids,
        length,
        width,
        alpha,
        IS_LOGITS=is_logits,
        SPLIT=split,
        ALIGN=_alignment(values),
        BLOCK_SLOTS=tile.slots,
        BLOCK_IDS=tile.ids,
        BLOCK_WIDTH=block_width,
        **tile.options,
    )
    if split:
        launch(
            _join_kernel,
            (n_slots, ceil_div(width, _JOIN_WIDTH)),
            sums,
            stats,
            *written_to,
            stride_rows,
            n_rows,
            n_slots,
            cut.parts,
            length,
            width,
            alpha,
            IS_LOGITS=is_logits,
            MOST_PARTS=MOST_PARTS,
            BLOCK_WIDTH=_JOIN_WIDTH,
            num_warps=_JOIN_WARPS,
            enable_fp_fusion=False,
        )
    return canvas, delta


def _alignment(values: Tensor) -> int:
    """A number of elements that divides where rows begin: what 16 bytes hold, or less.

    The ids count even where there is one row: no number of rows is to need another binary.
    """
    *sizes, vocabulary = values.shape
    steps = (step for size, step in zip(sizes, values.stride(), strict=False) if size > 1)
    return math.gcd(16 // values.element_size(), vocabulary, *steps)


def aot_cases() -> Iterator[AotCase]:
    """Logits of the table's dtype and float32, probabilities; parts and none; odd sizes."""

    def case(
        name: str,
        dtype: torch.dtype,
        values: torch.dtype,
        is_logits: bool = True,
        vocabulary: int = 126464,
        width: int = 4096,
        sample: bool = False,
    ) -> AotCase:
        embeds = torch.empty(2, 256, width, dtype=dtype, device="meta")
        rows = torch.empty(2, 64, dtype=torch.int64, device="meta")
        inputs = embeds.new_empty(2, 64, vocabulary, dtype=values)
        table = embeds.new_empty(vocabulary, width)
        call = partial(forward, embeds, rows, inputs, table, table[0], 0.5, None, is_logits)
        return AotCase(f"fused, {name}", call, sample)

    bfloat16, single = torch.bfloat16, torch.float32
    for dtype in (bfloat16, torch.float16, single):
        name, sample = str(dtype).removeprefix("torch."), dtype == bfloat16
        yield case(f"logits, {name}", dtype, dtype, sample=sample)
        yield case(f"probabilities, {name}", dtype, dtype, False)
    yield case("float32 logits, bfloat16", bfloat16, single, sample=True)
    yield case("float32 probabilities, bfloat16", bfloat16, single, False)
    yield case("not cut, bfloat16", bfloat16, bfloat16, vocabulary=1024, sample=True)
    yield case("not cut, float32", single, single, vocabulary=1024)
    for dtype in (bfloat16, single):
        name = str(dtype).removeprefix("torch.")
        yield case(f"odd vocabulary, {name}", dtype, dtype, vocabulary=50257)
        yield case(f"odd width, {name}", dtype, dtype, width=250)
        yield case(f"odd sizes, {name}", dtype, dtype, False, vocabulary=50257, width=250)
        yield case(f"odd sizes, not cut, {name}", dtype, dtype, vocabulary=257, width=250)
