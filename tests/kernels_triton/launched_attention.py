"""Calls of the attention launchers that must need the same binaries, by name of the group."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from boe_kernels.attention_mass import triton as mass_kernels
from boe_kernels.query_attention import triton as query_kernels
from boe_kernels.row_attention import triton as row_kernels

HEADS, KV_HEADS, WIDTH = 8, 4, 40


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def canvas(batch: int, length: int, heads: int = HEADS, transposed: bool = True) -> Tensor:
    if transposed:
        return meta(batch, length, heads, WIDTH).transpose(1, 2)
    return meta(batch, heads, length, WIDTH)


def index_set(batch: int, count: int, first: int = 0) -> Tensor:
    """Rows that begin anywhere in memory."""
    return meta(batch * count + first, dtype=torch.int64)[first:].view(batch, count)


def key_bias(batch: int, length: int, first: int = 0) -> Tensor:
    """Biases that begin anywhere in memory."""
    return meta(batch * length + first, dtype=torch.float32)[first:].view(batch, length)


def forward(batch: int, length: int, window: int | None = None, mask: Tensor | None = None) -> None:
    q, k = canvas(batch, length), canvas(batch, length, KV_HEADS)
    query_kernels.forward(q, k, k, mask, 0.1, window, None)


def backward(
    batch: int,
    length: int,
    count: int,
    shared: bool = True,
    first: int = 0,
    compact: bool = False,
    grad_rows: str = "queries",
    mask: Tensor | None = None,
) -> None:
    q, k = canvas(batch, length), canvas(batch, length, KV_HEADS)
    lse = meta(batch, HEADS, length, dtype=torch.float32)
    rows = index_set(1 if shared else batch, count, first)
    options = (mask, 0.1, None, None, grad_rows, compact)
    query_kernels.backward(q, q, k, k, q, lse, rows, *options)


def replay(batch: int, length: int, count: int, transposed: bool = False) -> None:
    frozen = canvas(batch, length, KV_HEADS)
    q_rows = canvas(batch, count, transposed=transposed)
    live = canvas(batch, count, KV_HEADS, transposed)
    lse = meta(batch, HEADS, count, dtype=torch.float32)
    inputs = (q_rows, live, live, frozen, frozen)
    rows, empty = index_set(2, count)[:1], meta(0)
    row_kernels.forward(*inputs, rows, None, 0.1, None, None)
    saved = (empty, empty, q_rows, lse, rows)
    row_kernels.backward(q_rows, *inputs, *saved, None, 0.1, None, None)


def mass(batch: int, length: int, count: int, transposed: bool = False) -> None:
    lse = meta(batch, HEADS, count, dtype=torch.float32)
    q_rows = canvas(batch, count, transposed=transposed)
    k = canvas(batch, length, KV_HEADS)
    mass_kernels.forward(q_rows, k, lse, None, index_set(1, count), None, 0.1, None, None)


ATTENTION_GROUPS: dict[str, list[Callable[[], None]]] = {
    "attention of all rows": [
        partial(forward, *sizes) for sizes in ((1, 1024), (8, 127), (3, 4097), (1, 1))
    ],
    "attention with a window": [
        partial(forward, 1, 1024, window) for window in (1, 64, 511, 1 << 40)
    ],
    "attention with a bias anywhere in memory": [
        partial(forward, batch, length, mask=key_bias(batch, length, first))
        for batch, length, first in ((1, 1024, 0), (3, 127, 1), (2, 1, 0), (1, 64, 3))
    ],
    "active rows with a bias, split": [
        partial(backward, batch, length, count, mask=key_bias(batch, length, first))
        for batch, length, count, first in ((1, 1024, 65, 0), (2, 1000, 333, 1))
    ],
    "active rows, one pass": [
        partial(backward, *sizes)
        for sizes in ((1, 1024, 32), (1, 1024, 1), (1, 1024, 0), (4, 999, 17), (2, 4096, 31))
    ],
    "active rows, one pass, sets of their own anywhere in memory": [
        partial(backward, 2, 1024, count, shared=False, first=first)
        for count, first in ((32, 0), (1, 1), (7, 3))
    ],
    "active rows, one pass, compact": [
        partial(backward, batch, 1024, count, compact=True)
        for batch, count in ((1, 32), (1, 1), (3, 5))
    ],
    "active rows, split": [
        partial(backward, *sizes) for sizes in ((1, 1024, 65), (1, 1000, 333), (3, 2048, 100))
    ],
    "active rows, split, sets of their own": [
        partial(backward, 2, 1024, count, shared=False) for count in (65, 66, 301)
    ],
    "active rows and keys": [
        partial(backward, 1, 1024, count, grad_rows="keys") for count in (1, 17, 64, 300)
    ],
    "rows of a replay": [
        partial(replay, *sizes) for sizes in ((1, 1024, 64), (1, 1024, 1), (3, 1000, 33))
    ],
    "rows of a replay, as a model lays them out": [
        partial(replay, *sizes, transposed=True)
        for sizes in ((1, 1024, 64), (1, 1024, 7), (3, 1000, 33))
    ],
    "attention mass": [
        partial(mass, *sizes) for sizes in ((1, 1024, 64), (1, 1000, 1), (3, 4096, 77))
    ],
}
