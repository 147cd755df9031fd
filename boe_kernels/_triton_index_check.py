"""The check of index values as one kernel that trips a device assertion and waits for nothing.

PyTorch's operators take about fourteen launches to find a value out of range or given twice,
and a launch costs as much as the forward of a short canvas may lose. Triton's assertions are
compiled only with the launch option ``debug``, which the launcher sets; their messages are
part of the binary and so name bounds by letter: another canvas compiles nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from boe_kernels._triton import AotCase, launch

INDICES_PER_PROGRAM = 64


@triton.jit
def index_faults(
    indices_ptr,
    stride,
    first,
    count,
    lowest,
    end,
    UNIQUE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Which of a set's indices [first, first + BLOCK) are at fault.

    Returns:
        Two int32 (BLOCK,): 1 where the value lies outside [lowest, end); 1 where a later index
        has the same value. Negative values may repeat. Zeros past ``count``.
    """
    slot = first + tl.arange(0, BLOCK)
    inside = slot < count
    index = tl.load(indices_ptr + slot * stride, mask=inside, other=0)
    outside = (inside & ((index < lowest) | (index >= end))).to(tl.int32)
    repeated = tl.zeros([BLOCK], tl.int32)
    if UNIQUE:
        for later_first in range(first, count, BLOCK):
            later_slot = later_first + tl.arange(0, BLOCK)
            later = tl.load(indices_ptr + later_slot * stride, mask=later_slot < count, other=-1)
            same = (index[:, None] == later[None, :]) & (later >= 0)[None, :]
            same = same & (later_slot[None, :] > slot[:, None])
            repeated = tl.maximum(repeated, tl.max(same.to(tl.int32), axis=1))
    return outside, repeated


@triton.jit(
    do_not_specialize=("stride_set", "stride_index", "count", "lowest", "end"),
    do_not_specialize_on_alignment=("indices_ptr",),
)
def check_indices_kernel(
    indices_ptr,
    stride_set: tl.int64,
    stride_index: tl.int64,
    count,
    lowest,
    end,
    RANGE_MESSAGE: tl.constexpr,
    REPEATED_MESSAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per tile of indices and set; compares each index with those behind it."""
    indices_ptr += tl.cast(tl.program_id(1), tl.int64) * stride_set
    outside, repeated = index_faults(
        indices_ptr,
        stride_index,
        tl.program_id(0) * BLOCK,
        count,
        lowest,
        end,
        REPEATED_MESSAGE is not None,
        BLOCK,
    )
    tl.device_assert(outside == 0, RANGE_MESSAGE)
    if REPEATED_MESSAGE is not None:
        tl.device_assert(repeated == 0, REPEATED_MESSAGE)


def check_indices(
    indices: Tensor, lowest: int, end: int, range_message: str, repeated_message: str | None
) -> None:
    """Trip a device assertion if an index lies outside [lowest, end) or is given twice.

    Args:
        indices: int64 (A,) or (B, A), any strides, at least one index.
        range_message, repeated_message: what the assertion says; with ``None`` for the latter
            indices may repeat. Negative ones always may.
    """
    sets = indices if indices.dim() == 2 else indices.unsqueeze(0)
    launch(
        check_indices_kernel,
        (-(-sets.shape[1] // INDICES_PER_PROGRAM), sets.shape[0]),
        sets,
        *sets.stride(),
        sets.shape[1],
        lowest,
        end,
        RANGE_MESSAGE=range_message,
        REPEATED_MESSAGE=repeated_message,
        BLOCK=INDICES_PER_PROGRAM,
        num_warps=4,
        enable_fp_fusion=True,
        debug=True,
        # Or ``debug`` would also have every addition checked for overflow.
        sanitize_overflow=False,
    )


def aot_cases() -> Iterator[AotCase]:
    """With and without the check for repeated indices."""
    rows = torch.empty(2, 100, dtype=torch.int64, device="meta")
    for what, message in (("unique", "rows must not name a row twice"), ("repeated", None)):
        call = partial(check_indices, rows, -1, 1024, "rows must hold rows in [0, L)", message)
        yield AotCase(f"index check, {what}", call)
