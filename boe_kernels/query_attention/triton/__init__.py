"""ActiveQueryAttention as Triton kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from boe_kernels import _triton_index_check
from boe_kernels._attention_launch import DTYPES_AND_HEAD_DIMS, tiles_for
from boe_kernels._triton import AotCase
from boe_kernels.query_attention.triton.backward import backward
from boe_kernels.query_attention.triton.forward import forward

__all__ = ["aot_cases", "backward", "forward"]

_MANY, _FEW = 512, 1
"""Heads that occupy every device, and too few to do so."""

_HIDING: dict[str, dict[str, Any]] = {
    "everything seen": {},
    "padding": {"padded": True},
    "window": {"window": 64},
    "blocks": {"block_size": 32},
    "padding, window, blocks": {"padded": True, "window": 64, "block_size": 32},
    "bias": {"biased": True},
    "bias, window, blocks": {"biased": True, "window": 64, "block_size": 32},
}
"""What hides or weighs keys, by the name that it has in a case."""

_EXTREMES = ("everything seen", "padding, window, blocks", "bias, window, blocks")

_SAMPLED = {
    "forward, bfloat16, 128, everything seen",
    "forward, bfloat16, 128, window",
    "forward, bfloat16, 256, bias",
    "forward, float32, 64, everything seen",
    "one pass, bfloat16, 128, everything seen",
    "one pass, bfloat16, 256, bias, window, blocks",
    "one pass, float16, 80",
    "split, bfloat16, 128, window",
}


def aot_cases() -> Iterator[AotCase]:
    """Every tile of the table: element and head widths, and what hides or weighs keys.

    And the check of index values, which all ops share and attention needs the most.
    """
    yield from _triton_index_check.aot_cases()
    for name, call in _cases():
        yield AotCase(name, call, name in _SAMPLED)


def _cases() -> Iterator[tuple[str, Callable[[], None]]]:
    kernels = ("forward", "one pass", "split")
    for (dtype, width), hiding in product(DTYPES_AND_HEAD_DIMS, _HIDING):
        # Products without matrix units take long to compile: of these the extremes only.
        if dtype == torch.float32 and hiding not in _EXTREMES:
            continue
        what = f"{str(dtype).removeprefix('torch.')}, {width}, {hiding}"
        call = partial(_case, dtype=dtype, width=width, **_HIDING[hiding])
        yield from ((f"{kernel}, {what}", partial(call, kernel)) for kernel in kernels)
        if hiding in _EXTREMES:
            yield f"split, few heads, {what}", partial(call, "split", heads=_FEW)
    for kernel in kernels:
        # Columns that are not there cost registers, too.
        yield f"{kernel}, float16, 80", partial(_case, kernel, dtype=torch.float16, width=80)
    of_rows = partial(_case, "split", dtype=torch.bfloat16, width=128, grad_rows="keys")
    yield "split, gradients of keys at rows, bfloat16, 128", of_rows


def _case(
    kernel: str,
    dtype: torch.dtype,
    width: int,
    window: int | None = None,
    block_size: int | None = None,
    padded: bool = False,
    biased: bool = False,
    heads: int = _MANY,
    grad_rows: str = "queries",
) -> None:
    """The launches of one kernel on meta tensors, in every tile that it has.

    Where keys are padded or biased each canvas has an index set of its own, else all share one.
    """

    def meta(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    length, batch = 1024, 2
    q = meta(batch, length, heads, width, dtype=dtype).transpose(1, 2)
    own = padded or biased
    mask = meta(batch, length, dtype=torch.float32 if biased else torch.bool) if own else None
    restrictions = (mask, 0.1, window, block_size)
    if kernel == "forward":
        forward(q, q, q, *restrictions)
        return
    counts = [length]
    if kernel == "one pass":
        hidden = window is not None or block_size is not None
        counts = [tile.held for tile in tiles_for("one_pass", q, hidden)]
    lse = meta(batch, heads, length, dtype=torch.float32)
    for count in counts:
        rows = meta(batch if own else 1, count, dtype=torch.int64)
        backward(q, q, q, q, q, lse, rows, *restrictions, grad_rows, False)
