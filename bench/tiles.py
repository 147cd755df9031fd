"""Tiles of the attention kernels to choose from: which there are, which fit, what to time.

A *subject* is an entry of ``boe_kernels/_attention_tiles.json``. Its tiles are tried by
putting one of them in the table's place and calling the kernels' launchers: on meta tensors
to compile, on a GPU's to time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from bench.binaries import binaries_of
from boe_kernels import _attention_launch
from boe_kernels._attention_launch import Tile, tile_key
from boe_kernels._dispatch import implementation
from boe_kernels.attention_mass import op as mass_op
from boe_kernels.query_attention import op as query_op
from boe_kernels.row_attention import op as row_op

KERNELS = {
    "forward": "fwd_kernel",
    "one_pass": "bwd_one_pass_kernel",
    "dq": "bwd_dq_kernel",
    "dkdv": "bwd_dkdv_kernel",
    "rows_dq": "bwd_dq_kernel",
    "rows_dkdv": "bwd_dkdv_kernel",
    "rows_forward": "rows_fwd_kernel",
    "mass": "mass_kernel",
}
"""The table's kernels, and what their functions are called."""

DTYPES = {16: torch.bfloat16, 32: torch.float32}
_ONE_PASS_ROWS = (64, 128)


@dataclass(frozen=True)
class Shape:
    """Sizes of a call; query and key heads are as many."""

    batch: int
    heads: int
    length: int
    count: int
    """Rows of the index set."""


@dataclass(frozen=True)
class Subject:
    """An entry of the table."""

    kernel: str
    bits: int
    width: int
    hidden: bool

    @property
    def key(self) -> str:
        return tile_key(DTYPES[self.bits], self.width, self.hidden)


@dataclass(frozen=True)
class Hiding:
    """What hides or weighs keys in a call; each combination is a binary of its own."""

    mask: torch.dtype | None = None
    """Of the key mask: bool for padding, float32 for biases; ``None`` without one."""
    window: bool = False
    blocks: bool = False


def hidings(subject: Subject) -> tuple[Hiding, ...]:
    """Of the calls that an entry serves, the plain ones, those with a mask and with a bias."""
    masks = (torch.bool, torch.float32)
    if not subject.hidden:
        return Hiding(), *(Hiding(mask) for mask in masks)
    alone = Hiding(window=True), Hiding(blocks=True)
    return *alone, *(Hiding(mask, window=True, blocks=True) for mask in masks)


@dataclass(frozen=True)
class Role:
    """What a tile of an entry is for: it is the one that takes least time on these shapes."""

    name: str
    shapes: tuple[Shape, ...]
    held: int | None = None
    """The only value that ``Tile.held`` may have."""


def roles(subject: Subject) -> tuple[Role, ...]:
    """The tiles that an entry lists, in its order."""
    if subject.kernel == "one_pass":
        return tuple(Role(f"{n} rows", (Shape(1, 32, 1024, n),), n) for n in _ONE_PASS_ROWS)
    few, many = Shape(1, 32, 1024, 256), Shape(8, 32, 2048, 512)
    if subject.kernel in ("forward", "rows_forward", "mass"):
        return (Role("all", (few, many)),)
    return (Role("many programs", (many,)), Role("few programs", (few,)))


def candidates(subject: Subject, role: Role, table: _attention_launch.Architecture) -> list[Tile]:
    """Tiles worth trying. Steps of dkdv end where the tiles of its dq do: others are left out."""
    helds = (role.held,) if role.held else (32, 64, 128)
    found = [Tile(*each) for each in product(helds, (32, 64, 128), (4, 8), (2, 3, 4))]
    form, of = ("rows_", 5) if subject.kernel.startswith("rows_") else ("", 0)
    if subject.kernel[of:] == "dq":
        steps = max(tile.streamed for tile in table.tiles[f"{form}dkdv"][subject.key])
        found = [tile for tile in found if tile.held % steps == 0]
    if subject.kernel[of:] == "dkdv":
        ends = min(tile.held for tile in table.tiles[f"{form}dq"][subject.key])
        found = [tile for tile in found if ends % tile.streamed == 0]
    return found


@contextmanager
def only_tile(architecture: str, subject: Subject, tile: Tile) -> Iterator[None]:
    """The entry has this tile alone inside the block; one pass is off where it is not meant."""
    table = _attention_launch.ARCHITECTURES[architecture]
    chosen = {kernel: dict(entries) for kernel, entries in table.tiles.items()}
    chosen["one_pass"][subject.key] = ()
    chosen[subject.kernel][subject.key] = (tile,)
    _attention_launch.ARCHITECTURES[architecture] = replace(table, tiles=chosen)
    try:
        yield
    finally:
        _attention_launch.ARCHITECTURES[architecture] = table


def call(
    subject: Subject,
    shape: Shape,
    device: torch.device,
    hiding: Hiding | None = None,
    grad_rows: str = "queries",
    path: str = "triton",
) -> Callable[[], tuple[Tensor, ...]]:
    """A call in which the subject's kernel runs; the tensors are drawn here, from a fixed seed.

    Args:
        hiding: by default a window and blocks where the subject is one for hidden keys, no mask.
        grad_rows: "keys" has the kernels of ``rows_`` run for ``active_query_attention``,
            which shares them with ``active_row_attention``.
        path: "library" computes the same with PyTorch's kernels, to judge a tile's results by.
    """
    query, row, mass = (implementation(op.__package__, path) for op in (query_op, row_op, mass_op))
    generator = torch.Generator(device).manual_seed(0) if device.type != "meta" else None
    dtype, width = DTYPES[subject.bits], subject.width
    batch, heads, length, count = astuple(shape)

    def draw(rows: int) -> Tensor:
        drawn = torch.randn(batch, rows, heads, width, device=device, generator=generator)
        return drawn.to(dtype).transpose(1, 2)

    canvas, rows = [draw(length) for _ in range(4)], [draw(count) for _ in range(4)]
    index = torch.arange(count, device=device) * (length // count)
    index = index.expand(batch, -1).contiguous()
    hiding = hiding or Hiding(window=subject.hidden, blocks=subject.hidden)
    mask = None
    if hiding.mask is not None:
        mask = torch.ones(batch, length, dtype=hiding.mask, device=device)
    window = length // 2 if hiding.window else None
    limits = (mask, width**-0.5, window, 64 if hiding.blocks else None)
    q, k, v, dout = canvas
    live_q, live_k, live_v, live_dout = rows
    if subject.kernel == "forward":
        return lambda: query.forward(q, k, v, *limits)[:1]
    if subject.kernel == "mass":
        lse_rows = torch.full((batch, heads, count), math.log(length), device=device)
        return lambda: (mass.forward(live_q, k, lse_rows, None, index, *limits),)
    if not subject.kernel.startswith("rows_") or grad_rows == "keys":
        out, lse = query.forward(q, k, v, *limits)
        return lambda: query.backward(dout, q, k, v, out, lse, index, *limits, grad_rows, False)
    inputs = (live_q, live_k, live_v, k, v)
    if subject.kernel == "rows_forward":
        return lambda: row.forward(*inputs, index, *limits)[:1]
    live_out, live_lse, keys, values = row.forward(*inputs, index, *limits)
    return lambda: row.backward(
        live_dout, *inputs, keys, values, live_out, live_lse, index, *limits
    )


def _draw_and_call(*arguments: Any) -> None:
    call(*arguments)()


def fits(architecture: str, subject: Subject, role: Role, tile: Tile) -> bool:
    """Whether the tile's binaries compile, without spills, within the shared memory.

    Those for calls with a key mask and with a bias per key (:func:`hidings`) are among them.
    It takes the process over for compilation.
    """
    meta = torch.device("meta")
    shared = subject.kernel in ("rows_dq", "rows_dkdv")
    forms = ("queries", "keys") if shared else ("queries",)
    with only_tile(architecture, subject, tile):
        for shape, hiding, grad_rows in product(role.shapes, hidings(subject), forms):
            launcher = partial(_draw_and_call, subject, shape, meta, hiding, grad_rows)
            made = binaries_of(launcher, architecture, KERNELS[subject.kernel])
            if any(binary.complaint for binary in made):
                return False
    return True
