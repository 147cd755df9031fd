"""The statistics of every row of logits, and optionally a Gumbel draw from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from boe_kernels._rows import with_unit_stride
from boe_kernels._triton import launch
from boe_kernels.entropy.triton.parameters import (
    PARTS,
    RowCut,
    launch_parameters,
    suppressed_form,
)
from boe_kernels.entropy.triton.statistics import (
    LOADS_PER_LANE,
    in_range,
    join_draws,
    join_parts,
    nothing_yet,
    part_statistics,
    row_statistics,
    store_statistics,
)

Stats = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

# One number per row: where it lies says nothing about how it can be loaded.
PER_ROW = ["entropy_ptr", "lse_ptr", "top1_ptr", "top2_ptr", "argmax_ptr", "token_ptr", "seeds_ptr"]


@triton.jit(
    do_not_specialize=["part_tiles", "n_parts"],
    do_not_specialize_on_alignment=PER_ROW,
)
def _fwd_rows_kernel(
    logits_ptr,
    suppressed_ptr,
    entropy_ptr,
    lse_ptr,
    top1_ptr,
    top2_ptr,
    argmax_ptr,
    stride_row: tl.int64,
    n_columns: tl.int32,
    part_tiles: tl.int32,
    n_parts: tl.int32,
    LISTED: tl.constexpr,
    LANES: tl.constexpr,
):
    """One program per row: for many rows."""
    row = tl.program_id(0).to(tl.int64)
    largest, second, mass, moment, winner = row_statistics(
        logits_ptr + row * stride_row,
        n_columns,
        part_tiles,
        n_parts,
        suppressed_ptr,
        LISTED,
        LANES,
    )
    store_statistics(
        largest,
        second,
        mass,
        moment,
        winner,
        row,
        entropy_ptr,
        lse_ptr,
        top1_ptr,
        top2_ptr,
        argmax_ptr,
    )


@triton.jit(
    do_not_specialize=["part_tiles", "n_rows"],
    do_not_specialize_on_alignment=PER_ROW,
)
def _fwd_parts_kernel(
    logits_ptr,
    suppressed_ptr,
    seeds_ptr,
    floats_ptr,
    columns_ptr,
    stride_row: tl.int64,
    n_rows: tl.int32,
    n_columns: tl.int32,
    part_tiles: tl.int32,
    inverse_temperature: tl.float32,
    LISTED: tl.constexpr,
    LANES: tl.constexpr,
    PARTS: tl.constexpr,
    DRAW: tl.constexpr,
):
    """One program per part of a row: for few rows, and for draws, whose noise keeps the
    processors busy longer than the memory. :func:`_fwd_merge_kernel` joins the parts.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    seed = tl.load(seeds_ptr + row) if DRAW else row
    begin = part * part_tiles * (LOADS_PER_LANE * LANES)
    end = tl.minimum(begin + part_tiles * (LOADS_PER_LANE * LANES), n_columns)
    largest, second, mass, moment, winner, end_of_race, token = part_statistics(
        logits_ptr + row * stride_row,
        begin,
        end,
        n_columns,
        suppressed_ptr,
        seed,
        inverse_temperature,
        LISTED,
        LANES,
        DRAW,
    )
    here = row * PARTS + part
    plane = n_rows.to(tl.int64) * PARTS
    tl.store(floats_ptr + here, largest)
    tl.store(floats_ptr + plane + here, second)
    tl.store(floats_ptr + 2 * plane + here, mass)
    tl.store(floats_ptr + 3 * plane + here, moment)
    tl.store(columns_ptr + here, winner)
    if DRAW:
        tl.store(floats_ptr + 4 * plane + here, end_of_race)
        tl.store(columns_ptr + plane + here, token)


@triton.jit(
    do_not_specialize=["n_rows", "n_parts"],
    do_not_specialize_on_alignment=PER_ROW,
)
def _fwd_merge_kernel(
    floats_ptr,
    columns_ptr,
    entropy_ptr,
    lse_ptr,
    top1_ptr,
    top2_ptr,
    argmax_ptr,
    token_ptr,
    n_rows: tl.int32,
    n_parts: tl.int32,
    inverse_temperature: tl.float32,
    PARTS: tl.constexpr,
    DRAW: tl.constexpr,
):
    """Join the parts of a row, in the way :func:`_fwd_rows_kernel` does."""
    row = tl.program_id(0).to(tl.int64)
    plane = n_rows.to(tl.int64) * PARTS
    largest, second, mass, moment, winner, race, token = nothing_yet()
    # Not a loop over n_parts, so that the loads of all parts are in flight together.
    for part in tl.static_range(PARTS):
        here = row * PARTS + part
        used = part < n_parts
        peak_b = tl.load(floats_ptr + here, mask=used, other=-float("inf"))
        second_b = tl.load(floats_ptr + plane + here, mask=used, other=-float("inf"))
        mass_b = tl.load(floats_ptr + 2 * plane + here, mask=used, other=0.0)
        moment_b = tl.load(floats_ptr + 3 * plane + here, mask=used, other=0.0)
        winner_b = tl.load(columns_ptr + here, mask=used, other=0)
        peak = largest
        largest, second, mass, moment, winner = join_parts(
            peak, second, mass, moment, winner, peak_b, second_b, mass_b, moment_b, winner_b
        )
        if DRAW:
            race_b = tl.load(floats_ptr + 4 * plane + here, mask=used, other=float("inf"))
            token_b = tl.load(columns_ptr + plane + here, mask=used, other=0)
            race, token = join_draws(
                race, token, peak, race_b, token_b, peak_b, largest, inverse_temperature
            )
    store_statistics(
        largest,
        second,
        mass,
        moment,
        winner,
        row,
        entropy_ptr,
        lse_ptr,
        top1_ptr,
        top2_ptr,
        argmax_ptr,
    )
    if DRAW:
        tl.store(token_ptr + row, in_range(token).to(tl.int64))


@dataclass(frozen=True)
class Draw:
    """A token to be drawn from each row, in the same read of the logits."""

    seeds: Tensor
    """int64 (N,)."""
    temperature: float
    token: Tensor
    """int64 (N,), to be filled."""


def forward(logits: Tensor, suppressed_ids: Tensor | None) -> Stats:
    """Entropy, ln Σ exp z, p(1), p(2) and the argmax of each row of ``logits`` (N, V)."""
    stats = empty_stats(logits)
    fill_stats(stats, logits, suppressed_ids)
    return stats


def forward_with_draw(
    logits: Tensor, suppressed_ids: Tensor | None, seeds: Tensor, temperature: float
) -> tuple[Stats, Tensor]:
    """The same, and a draw from softmax(z/τ) by the row's seed, int64 (N,)."""
    stats = empty_stats(logits)
    draw = Draw(seeds.contiguous(), temperature, torch.empty_like(stats[4]))
    fill_stats(stats, logits, suppressed_ids, draw)
    return stats, draw.token


def empty_stats(logits: Tensor) -> Stats:
    """Uninitialised results for the rows of ``logits``."""
    n_rows = logits.shape[0]
    entropy, lse, top1, top2 = (logits.new_empty(n_rows, dtype=torch.float32) for _ in range(4))
    return entropy, lse, top1, top2, logits.new_empty(n_rows, dtype=torch.int64)


def fill_stats(
    stats: Stats, logits: Tensor, suppressed_ids: Tensor | None, draw: Draw | None = None
) -> None:
    """Write the statistics of ``logits`` (N, V) to contiguous ``stats``, and the draw's token."""
    logits = with_unit_stride(logits)
    n_rows, n_columns = logits.shape
    parameters = launch_parameters(logits)
    cut = RowCut.of(n_columns, parameters)
    suppressed, listed = suppressed_form(suppressed_ids, logits)
    # Bits must not depend on which multiplications a compiler fuses into additions.
    read = {
        "LISTED": listed,
        "LANES": parameters.lanes,
        "num_warps": parameters.warps,
        "enable_fp_fusion": False,
    }
    if draw is None and (n_rows >= parameters.whole_rows or cut.parts == 1):
        launch(
            _fwd_rows_kernel,
            (n_rows,),
            logits,
            suppressed,
            *stats,
            logits.stride(0),
            n_columns,
            cut.part_tiles,
            cut.parts,
            **read,
        )
        return
    # Without a draw these stand in for tensors that are not touched.
    seeds, token, inverse_temperature = suppressed, stats[4], 1.0
    if draw is not None:
        seeds, token, inverse_temperature = draw.seeds, draw.token, 1.0 / draw.temperature
    planes = (5, 2) if draw is not None else (4, 1)
    floats = logits.new_empty(planes[0], n_rows, PARTS, dtype=torch.float32)
    columns = logits.new_empty(planes[1], n_rows, PARTS, dtype=torch.int32)
    launch(
        _fwd_parts_kernel,
        (n_rows, cut.parts),
        logits,
        suppressed,
        seeds,
        floats,
        columns,
        logits.stride(0),
        n_rows,
        n_columns,
        cut.part_tiles,
        inverse_temperature,
        PARTS=PARTS,
        DRAW=draw is not None,
        **read,
    )
    launch(
        _fwd_merge_kernel,
        (n_rows,),
        floats,
        columns,
        *stats,
        token,
        n_rows,
        cut.parts,
        inverse_temperature,
        PARTS=PARTS,
        DRAW=draw is not None,
        num_warps=1,
        enable_fp_fusion=False,
    )
