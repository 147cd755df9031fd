"""Active-row attention as Triton kernels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from boe_kernels._attention_launch import DTYPES_AND_HEAD_DIMS
from boe_kernels._triton import AotCase
from boe_kernels.row_attention.triton.backward import backward
from boe_kernels.row_attention.triton.forward import forward

__all__ = ["aot_cases", "backward", "forward"]


_HIDING = ((None, False), (64, False), (64, True))
"""Window, and whether there is a bias."""


def aot_cases() -> Iterator[AotCase]:
    """Element and head widths, all keys seen or not; one head, so that there are parts."""
    for (dtype, width), (window, biased) in product(DTYPES_AND_HEAD_DIMS, _HIDING):
        sample = dtype == torch.bfloat16 and width == 64 and biased
        what = f"{str(dtype).removeprefix('torch.')}, {width}, window {window}"
        what += ", bias" if biased else ""
        for heads in (1, 512):
            call = partial(_case, dtype, width, window, biased, heads)
            yield AotCase(f"{what}, heads {heads}", call, sample and heads == 1)


def _case(dtype: torch.dtype, width: int, window: int | None, biased: bool, heads: int) -> None:
    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    count, length = 512, 1024
    live, frozen = meta(2, heads, count, width), meta(2, heads, length, width)
    rows = meta(2, count, dtype=torch.int64)
    inputs = (live, live, live, frozen, frozen)
    restrictions = (meta(2, length, dtype=torch.float32) if biased else None, 0.1, window, None)
    out, lse, keys, values = forward(*inputs, rows, *restrictions)
    backward(live, *inputs, keys, values, out, lse, rows, *restrictions)
