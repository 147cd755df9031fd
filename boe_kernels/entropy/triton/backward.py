"""The gradient of the entropy with respect to the logits: dH/dz_v = −p_v (ln p_v + H)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from boe_kernels._rows import with_unit_stride
from boe_kernels._triton import launch
from boe_kernels.entropy.triton.forward import PER_ROW, Stats, fill_stats
from boe_kernels.entropy.triton.parameters import RowCut, launch_parameters, suppressed_form
from boe_kernels.entropy.triton.statistics import (
    LOG2_E,
    load_logits,
    row_statistics,
    store_statistics,
)

# exp of this is exactly zero in float32.
_FLOOR: tl.constexpr = tl.constexpr(-200.0)


@triton.jit
def _entropy_gradient(z, entropy, lse, grad):
    """−g·p·(ln p + H); 0 at impossible ids, NaN throughout a row whose H is NaN."""
    log_p = tl.maximum(z - lse, _FLOOR)
    return -grad * tl.exp2(log_p * LOG2_E) * (log_p + entropy)


@triton.jit(
    do_not_specialize=["stride_grad_entropy"],
    do_not_specialize_on_alignment=["grad_entropy_ptr", *PER_ROW],
)
def _bwd_kernel(
    logits_ptr,
    suppressed_ptr,
    grad_entropy_ptr,
    entropy_ptr,
    lse_ptr,
    grad_logits_ptr,
    stride_row: tl.int64,
    stride_grad_entropy: tl.int64,
    stride_grad_row: tl.int64,
    n_columns: tl.int32,
    LISTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row and block of ids."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wanted = columns < n_columns
    z = load_logits(logits_ptr + row * stride_row, columns, wanted, suppressed_ptr, LISTED)
    grad = tl.load(grad_entropy_ptr + row * stride_grad_entropy).to(tl.float32)
    gradient = _entropy_gradient(z, tl.load(entropy_ptr + row), tl.load(lse_ptr + row), grad)
    target = grad_logits_ptr + row * stride_grad_row + columns
    tl.store(target, gradient.to(grad_logits_ptr.dtype.element_ty), mask=wanted)


@triton.jit(
    do_not_specialize=["part_tiles", "n_parts"],
    do_not_specialize_on_alignment=PER_ROW,
)
def _fwd_bwd_kernel(
    logits_ptr,
    suppressed_ptr,
    entropy_ptr,
    lse_ptr,
    top1_ptr,
    top2_ptr,
    argmax_ptr,
    grad_logits_ptr,
    stride_row: tl.int64,
    stride_grad_row: tl.int64,
    n_columns: tl.int32,
    part_tiles: tl.int32,
    n_parts: tl.int32,
    LISTED: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row: its statistics, then its gradient, maybe over the logits themselves.

    The second read follows the first at once, so that most of it is served by the cache.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_row
    largest, second, mass, moment, winner = row_statistics(
        row_ptr, n_columns, part_tiles, n_parts, suppressed_ptr, LISTED, LANES
    )
    entropy, lse = store_statistics(
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
    for start in range(0, n_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        wanted = columns < n_columns
        z = load_logits(row_ptr, columns, wanted, suppressed_ptr, LISTED)
        gradient = _entropy_gradient(z, entropy, lse, 1.0)
        target = grad_logits_ptr + row * stride_grad_row + columns
        tl.store(target, gradient.to(grad_logits_ptr.dtype.element_ty), mask=wanted)


def backward(
    grad_entropy: Tensor,
    logits: Tensor,
    entropy: Tensor,
    lse: Tensor,
    suppressed_ids: Tensor | None,
) -> Tensor:
    """The gradient (N, V), contiguous, in the dtype of the logits."""
    logits = with_unit_stride(logits)
    grad_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _launch_gradient(grad_entropy, logits, entropy, lse, suppressed_ids, grad_logits)
    return grad_logits


def write_stats(
    stats: Stats, logits: Tensor, suppressed_ids: Tensor | None, gradient: Tensor | None = None
) -> None:
    """Fill contiguous ``stats`` and, where given, ``gradient`` with dH/dz.

    ``gradient`` may be the logits themselves.
    """
    if gradient is None:
        fill_stats(stats, logits, suppressed_ids)
        return
    logits = with_unit_stride(logits)
    n_rows, n_columns = logits.shape
    parameters = launch_parameters(logits)
    if n_rows < parameters.whole_rows:
        fill_stats(stats, logits, suppressed_ids)
        one = logits.new_ones((), dtype=torch.float32).expand(n_rows)
        _launch_gradient(one, logits, stats[0], stats[1], suppressed_ids, gradient)
        return
    cut = RowCut.of(n_columns, parameters)
    suppressed, listed = suppressed_form(suppressed_ids, logits)
    launch(
        _fwd_bwd_kernel,
        (n_rows,),
        logits,
        suppressed,
        *stats,
        gradient,
        logits.stride(0),
        gradient.stride(0),
        n_columns,
        cut.part_tiles,
        cut.parts,
        LISTED=listed,
        LANES=parameters.lanes,
        BLOCK=parameters.gradient_loads * parameters.lanes,
        num_warps=parameters.warps,
        enable_fp_fusion=False,
    )


def _launch_gradient(
    grad_entropy: Tensor,
    logits: Tensor,
    entropy: Tensor,
    lse: Tensor,
    suppressed_ids: Tensor | None,
    grad_logits: Tensor,
) -> None:
    n_rows, n_columns = logits.shape
    parameters = launch_parameters(logits)
    suppressed, listed = suppressed_form(suppressed_ids, logits)
    block = parameters.gradient_loads * parameters.lanes
    launch(
        _bwd_kernel,
        (n_rows, triton.cdiv(n_columns, block)),
        logits,
        suppressed,
        grad_entropy,
        entropy,
        lse,
        grad_logits,
        logits.stride(0),
        grad_entropy.stride(0),
        grad_logits.stride(0),
        n_columns,
        LISTED=listed,
        BLOCK=block,
        num_warps=parameters.warps,
        enable_fp_fusion=False,
    )
