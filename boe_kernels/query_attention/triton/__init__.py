"""ActiveQueryAttention as Triton kernels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from boe_kernels._attention_launch import HEAD_DIMS, tiles_for
from boe_kernels._triton import AotCase
from boe_kernels.query_attention.triton.backward import backward
from boe_kernels.query_attention.triton.forward import forward

__all__ = ["aot_cases", "backward", "forward"]

_MANY, _FEW = 512, 1
"""Heads that occupy every device, and too few to do so."""


def aot_cases() -> Iterator[AotCase]:
    """Every tile of the table: element and head widths, all keys seen or not, padding."""
    for dtype, width in product((torch.bfloat16, torch.float32), HEAD_DIMS):
        half = dtype == torch.bfloat16
        for window, padded in ((None, False), (64, False), (None, True)):
            sample = not padded and ((half and width == 128) or (width == 64 and window is None))
            hides = "padding" if padded else "everything seen" if window is None else "window"
            call = partial(_case, dtype=dtype, width=width, window=window, padded=padded)
            what = f"{str(dtype).removeprefix('torch.')}, {width}, {hides}"
            yield AotCase(f"forward, {what}", partial(call, "forward"), sample)
            yield AotCase(f"one pass, {what}", partial(call, "one pass"), sample)
            yield AotCase(f"split, {what}", partial(call, "split"), sample and half)
            yield AotCase(f"split, few heads, {what}", partial(call, "split", heads=_FEW), False)
    odd = partial(_case, "one pass", dtype=torch.float16, width=80)
    yield AotCase("one pass, float16, 80", odd)
    blocks = partial(_case, "one pass", dtype=torch.bfloat16, width=128, block_size=32)
    yield AotCase("one pass, bfloat16, 128, blocks", blocks, False)


def _case(
    kernel: str,
    dtype: torch.dtype,
    width: int,
    window: int | None = None,
    block_size: int | None = None,
    padded: bool = False,
    heads: int = _MANY,
) -> None:
    """The launches of one kernel on meta tensors, in every tile that it has."""

    def meta(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    length = 1024
    q = meta(1, length, heads, width, dtype=dtype).transpose(1, 2)
    mask = meta(1, length, dtype=torch.bool) if padded else None
    restrictions = (mask, 0.1, window, block_size)
    if kernel == "forward":
        forward(q, q, q, *restrictions)
        return
    counts = [length]
    if kernel == "one pass":
        hidden = window is not None or block_size is not None
        counts = [tile.held for tile in tiles_for("one_pass", q, hidden)]
    lse = meta(1, heads, length, dtype=torch.float32)
    for count in counts:
        rows = meta(1, count, dtype=torch.int64)
        backward(q, q, q, q, q, lse, rows, *restrictions, "queries", False)
