"""How the attention kernels are launched: tile sizes, how keys are cut up, strides.

Tile sizes are data, in ``_attention_tiles.json``: for each architecture, kernel, width of
elements and width of heads. Nothing here depends on the batch: each canvas gives the same
bits alone as in a batch with an index set of the same length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boe_kernels._triton import WIDEST_HEAD, for_device

TABLE = Path(__file__).with_name("_attention_tiles.json")
HEAD_DIMS = (64, 128, WIDEST_HEAD)
"""Head dimensions with tiles of their own; others use those of the next larger."""

DTYPES_AND_HEAD_DIMS = tuple(product((torch.bfloat16, torch.float32), HEAD_DIMS))
"""Every pair that has tiles; float16 shares those of bfloat16."""


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


# --- tile sizes ---------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """Tile sizes and launch options of a kernel.

    Attributes:
        held: rows (or keys) for which a program works from beginning to end.
        streamed: keys (or rows) that it reads in each step.
        warps: warps per program.
        stages: steps for which it reads ahead, plus one.
    """

    held: int
    streamed: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int | bool]:
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Architecture:
    """The tiles of one architecture, by kernel and :func:`tile_key`, the preferred first."""

    multiprocessors: int
    tiles: Mapping[str, Mapping[str, tuple[Tile, ...]]]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Architecture:
        tiles = {
            kernel: {key: tuple(Tile(*tile) for tile in listed) for key, listed in table.items()}
            for kernel, table in data["tiles"].items()
        }
        return cls(data["multiprocessors"], tiles)


ARCHITECTURES = {
    name: Architecture.from_json(data)
    for name, data in json.loads(TABLE.read_text(encoding="utf-8")).items()
}

_HAS_WGMMA = {name: name == "sm_90" for name in ARCHITECTURES}


def tile_key(dtype: torch.dtype, width: int, hidden: bool) -> str:
    """Under which the tiles of a head dimension stand; ``hidden``: not all keys are seen."""
    bucket = next(known for known in HEAD_DIMS if width <= known)
    return f"{8 * dtype.itemsize} bits, {bucket}" + (", hidden" if hidden else "")


def tiles_for(kernel: str, q: Tensor, hidden: bool) -> tuple[Tile, ...]:
    tiles = for_device(ARCHITECTURES, q.device).tiles[kernel]
    return tiles[tile_key(q.dtype, q.shape[-1], hidden)]


def has_asynchronous_products(q: Tensor) -> bool:
    """Whether matrix products add to registers beside what follows them: wgmma, of sm_90."""
    return for_device(_HAS_WGMMA, q.device)


def programs_wanted(q: Tensor, tile: Tile) -> int:
    """How many programs occupy the device of ``q``: 8 warps on every multiprocessor."""
    return for_device(ARCHITECTURES, q.device).multiprocessors * max(1, 8 // tile.warps)


def first_occupying(q: Tensor, tiles: Sequence[Tile], programs: Callable[[Tile], int]) -> Tile:
    """The first tile that makes nearly as many programs as are wanted; else the last."""
    for tile in tiles:
        if 4 * programs(tile) >= 3 * programs_wanted(q, tile):
            return tile
    return tiles[-1]


def keys_per_step(tile: Tile, mask: Tensor | None) -> int:
    """Of a kernel that streams keys.

    Biases take registers for each key of a step: there are half as many keys then, but no
    fewer than 32.
    """
    if mask is None or mask.dtype == torch.bool:
        return tile.streamed
    return max(min(tile.streamed, 32), tile.streamed // 2)


@dataclass(frozen=True)
class Cut:
    """Keys in ``parts`` stretches of ``stretch`` keys, the last of which may be shorter."""

    parts: int
    stretch: int

    @classmethod
    def of(cls, key_length: int, parts: float, tile: int) -> Cut:
        """About ``parts`` stretches, each a multiple of ``tile`` keys."""
        steps = max(1, ceil_div(key_length, tile))
        stretch = ceil_div(steps, max(1, round(parts))) * tile
        return cls(max(1, ceil_div(key_length, stretch)), stretch)


# --- arguments ----------------------------------------------------------------------


def constants(q: Tensor, *others: Tensor) -> dict[str, int]:
    """The constexprs of the heads' width, and what divides the strides of all tensors."""
    width = q.shape[-1]
    align = math.gcd(16 // q.dtype.itemsize, width)
    for x in (q, *others):
        steps = zip(x.shape[:3], x.stride()[:3], strict=True)
        align = math.gcd(align, *(stride for size, stride in steps if size > 1))
    block = max(16, 1 << (width - 1).bit_length())
    return {"HEAD_DIM": width, "BLOCK_D": block, "ALIGN": align}


def strides(x: Tensor | None) -> tuple[int, ...]:
    """Of batch, head and row."""
    return (0, 0, 0) if x is None else x.stride()[:3]


def with_near_columns(dout: Tensor) -> Tensor:
    """``dout``, whatever its strides, unless 32 bits cannot count how far its columns lie apart."""
    return dout if dout.stride(-1) * dout.shape[-1] < 1 << 31 else dout.contiguous()


def index_set(rows: Tensor) -> tuple[Tensor, int]:
    """The index set and how far the canvases' sets lie apart; 0 where they share one."""
    rows = rows.contiguous()
    return rows, 0 if rows.shape[0] == 1 else rows.shape[1]


def mask_and_stride(mask: Tensor | None) -> tuple[Tensor | None, int]:
    """A key mask as kernels take it, bool or float32, and how far canvases lie apart in it."""
    if mask is None:
        return None, 0
    if mask.dtype != torch.bool:
        mask = mask.to(torch.float32)
    mask = mask if mask.stride(1) == 1 or mask.shape[1] == 1 else mask.contiguous()
    return mask, mask.stride(0)


def bounded(distance: int | None, k: Tensor) -> int | None:
    """A window or block size that is larger than the canvas need not fit 32 bits."""
    return None if distance is None else min(distance, max(k.shape[2], 1))
