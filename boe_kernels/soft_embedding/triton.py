"""Soft writes as Triton kernels.

Dense form: the product with the embedding table is the vendor library's, which reads the
table once, and that is the bound; one kernel then blends and writes straight into the
canvas rows. Top-k form: one kernel gathers k table rows per position, weighs and sums them
in float32, blends and writes. Both copy the canvas once and leave Δe behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from boe_kernels._attention_launch import index_set
from boe_kernels._products import linear
from boe_kernels._rows import with_unit_stride
from boe_kernels._triton import AotCase, for_device, launch


@dataclass(frozen=True)
class SoftWriteLaunch:
    """Launch parameters of one architecture.

    Attributes:
        warps: warps per program.
        block_width: embedding dimensions per program.
        block_terms: table rows that are loaded at once.
    """

    warps: int
    block_width: int
    block_terms: int


# Not tuned on the hardware: 32 values per thread in flight, 16 bytes per load.
LAUNCH: Mapping[str, SoftWriteLaunch] = {
    "sm_80": SoftWriteLaunch(warps=4, block_width=512, block_terms=8),
    "sm_90": SoftWriteLaunch(warps=4, block_width=512, block_terms=8),
    "sm_100": SoftWriteLaunch(warps=4, block_width=512, block_terms=8),
    "gfx942": SoftWriteLaunch(warps=4, block_width=512, block_terms=16),
}


@triton.jit
def write_rows(
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
):
    """Δe = ẽ − e_m into ``slot`` of the deltas, e_m + α·Δe into the canvas at ``position``.

    For a row or a tile of rows; ``base`` is e_m, and all shapes broadcast to ``expected``.
    """
    delta = tl.where(position >= 0, expected - base, 0.0)
    target = delta_ptr + slot.to(tl.int64) * width + columns
    tl.store(target, delta.to(delta_ptr.dtype.element_ty), mask=wanted)
    target = canvas_ptr + (batch.to(tl.int64) * length + position) * width + columns
    blend = tl.fma(delta, alpha, base)
    # Padding has no place on the canvas.
    wanted = columns < tl.where(position >= 0, width, 0)
    tl.store(target, blend.to(canvas_ptr.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["stride_rows", "n_rows", "length"])
def _blend_kernel(
    expected_ptr,
    rows_ptr,
    mask_embed_ptr,
    canvas_ptr,
    delta_ptr,
    stride_rows: tl.int64,
    n_rows: tl.int32,
    length: tl.int32,
    width: tl.int32,
    alpha: tl.float32,
    BLOCK_WIDTH: tl.constexpr,
):
    """One program per row to write and block of dimensions; ``expected`` is contiguous."""
    slot = tl.program_id(0)
    batch = slot // n_rows
    position = tl.load(rows_ptr + batch * stride_rows + slot % n_rows)
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    wanted = columns < width
    source = expected_ptr + slot.to(tl.int64) * width + columns
    expected = tl.load(source, mask=wanted, other=0.0).to(tl.float32)
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


@triton.jit(do_not_specialize=["stride_rows", "n_rows", "length", "n_terms"])
def _gather_kernel(
    values_ptr,
    ids_ptr,
    table_ptr,
    rows_ptr,
    mask_embed_ptr,
    canvas_ptr,
    delta_ptr,
    stride_table: tl.int64,
    stride_rows: tl.int64,
    n_rows: tl.int32,
    n_terms: tl.int32,
    length: tl.int32,
    width: tl.int32,
    alpha: tl.float32,
    IS_LOGITS: tl.constexpr,
    BLOCK_TERMS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """The same with ẽ = Σ w_j E[id_j] / Σ w_j, over the k largest values, in descending order."""
    slot = tl.program_id(0)
    batch = slot // n_rows
    position = tl.load(rows_ptr + batch * stride_rows + slot % n_rows)
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    wanted = columns < width
    first = slot.to(tl.int64) * n_terms
    largest = tl.load(values_ptr + first).to(tl.float32)
    weighted = tl.zeros((BLOCK_TERMS, BLOCK_WIDTH), tl.float32)
    mass = tl.zeros((BLOCK_TERMS,), tl.float32)
    # Padding reads nothing.
    for start in range(0, tl.where(position >= 0, n_terms, 0), BLOCK_TERMS):
        terms = start + tl.arange(0, BLOCK_TERMS)
        present = terms < n_terms
        ids = tl.load(ids_ptr + first + terms, mask=present, other=0)
        weight = tl.load(values_ptr + first + terms, mask=present, other=0.0).to(tl.float32)
        if IS_LOGITS:
            weight = tl.exp(weight - largest)
        weight = tl.where(present, weight, 0.0)
        source = table_ptr + ids[:, None] * stride_table + columns[None, :]
        embeds = tl.load(source, mask=present[:, None] & wanted[None, :], other=0.0)
        weighted += embeds.to(tl.float32) * weight[:, None]
        mass += weight
    expected = tl.sum(weighted, axis=0) / tl.sum(mass)
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
    batch, length, width = embeds.shape
    n_rows = rows.shape[1]
    canvas = embeds.clone(memory_format=torch.contiguous_format)
    delta = embeds.new_empty(batch, n_rows, width)
    parameters = for_device(LAUNCH, embeds.device)
    grid = (batch * n_rows, triton.cdiv(width, parameters.block_width))
    rows, stride_rows = index_set(rows)
    written_to = (rows, mask_embed.contiguous(), canvas, delta)
    options = {
        "BLOCK_WIDTH": parameters.block_width,
        "num_warps": parameters.warps,
        "enable_fp_fusion": False,
    }
    if top_k is None:
        expected = linear(_probabilities(probs_or_logits, table.dtype, is_logits), table.t())
        launch(
            _blend_kernel,
            grid,
            expected.contiguous(),
            *written_to,
            stride_rows,
            n_rows,
            length,
            width,
            alpha,
            **options,
        )
        return canvas, delta
    kept = probs_or_logits.topk(top_k, dim=-1)
    table = with_unit_stride(table)
    launch(
        _gather_kernel,
        grid,
        kept.values.contiguous(),
        kept.indices.contiguous(),
        table,
        *written_to,
        table.stride(0),
        stride_rows,
        n_rows,
        top_k,
        length,
        width,
        alpha,
        IS_LOGITS=is_logits,
        BLOCK_TERMS=parameters.block_terms,
        **options,
    )
    return canvas, delta


def _probabilities(values: Tensor, dtype: torch.dtype, is_logits: bool) -> Tensor:
    """The distribution in ``dtype``, the softmax in float32."""
    if not is_logits:
        return values.to(dtype)
    if values.dtype == dtype:
        return values.softmax(dim=-1)
    return values.softmax(dim=-1, dtype=torch.float32).to(dtype)


def aot_cases() -> Iterator[AotCase]:
    """Both forms, probabilities and logits; a width that 16 does not divide."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name, sample = str(dtype).removeprefix("torch."), dtype == torch.bfloat16
        embeds = torch.empty(2, 256, 4096, dtype=dtype, device="meta")
        table = embeds.new_empty(126464, 4096)
        rows = torch.empty(2, 64, dtype=torch.int64, device="meta")
        logits = embeds.new_empty(2, 64, 126464)
        inputs = (embeds, rows, logits, table, table[0], 0.5)
        yield AotCase(f"dense, {name}", partial(forward, *inputs, None, True), sample)
        yield AotCase(f"top-k of logits, {name}", partial(forward, *inputs, 64, True), sample)
    embeds, table = embeds.new_empty(1, 256, 250), table.new_empty(126464, 250)
    inputs = (embeds, rows[0, None], logits[:1], table, table[0], 0.5)
    yield AotCase("dense, odd width", partial(forward, *inputs, None, False))
    yield AotCase("top-k of probabilities, odd width", partial(forward, *inputs, 64, False))
