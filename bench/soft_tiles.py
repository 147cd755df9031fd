"""Tiles of the fused soft write: which there are, which fit, whether the best one wins.

``python -m bench tune`` chooses by them: the tile of an architecture and width of elements is the
one that takes least time at 64 and 256 rows (the geometric mean), and "auto" prefers the
fused form to the vendor's product if it is faster at both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from bench.binaries import binaries_of
from bench.tiles import DTYPES, Role
from boe_kernels.soft_embedding import triton as vendor_form
from boe_kernels.soft_embedding import triton_fused as fused_form
from boe_kernels.soft_embedding.fused_launch import LEAST_PART, TILES, FusedTile, tile_key

VOCABULARY, WIDTH = 126_464, 4096
ROWS = (64, 256)
_ALPHA, _LENGTH = 0.5, 1024
# Numbers that a lane adds up: more are spilled, fewer leave the matrix units idle.
_SUMS = range(8, 129)

Results = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SoftSubject:
    """An entry of the table of tiles."""

    kernel: ClassVar[str] = "soft_write"
    bits: int

    @property
    def key(self) -> str:
        return tile_key(DTYPES[self.bits])


def roles() -> tuple[Role, ...]:
    """One for each number of rows that is timed; they share a tile."""
    return tuple(Role(f"{rows} rows", ()) for rows in ROWS)


def candidates() -> list[FusedTile]:
    """Tiles worth trying."""
    sizes = product((32, 64, 128), (32, 64), (64, 128, 256), (4, 8), (1, 2, 3, 4))
    tiles = [FusedTile(*each) for each in sizes]
    return [t for t in tiles if t.slots * t.width // (32 * t.warps) in _SUMS]


@contextmanager
def only_tile(architecture: str, subject: SoftSubject, tile: FusedTile) -> Iterator[None]:
    """The entry is this tile inside the block."""
    entries = TILES[architecture]
    before, entries[subject.key] = entries[subject.key], tile
    try:
        yield
    finally:
        entries[subject.key] = before


def call(
    subject: SoftSubject,
    rows: int,
    device: torch.device,
    *,
    fused: bool = True,
    is_logits: bool = True,
    values: torch.dtype | None = None,
    vocabulary: int = VOCABULARY,
) -> partial[Results]:
    """A soft write; the tensors are drawn once, here.

    Args:
        fused: or by the vendor's product.
        values: dtype of the logits or probabilities; by default the table's.
    """
    dtype = DTYPES[subject.bits]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    table = draw(vocabulary, WIDTH)
    logits = (3 * draw(1, rows, vocabulary)).to(values or dtype)
    index = torch.arange(rows, device=device)[None]
    form = fused_form if fused else vendor_form
    canvas = draw(1, _LENGTH, WIDTH)
    return partial(form.forward, canvas, index, logits, table, table[0], _ALPHA, None, is_logits)


def _draw_and_call(
    subject: SoftSubject, is_logits: bool, values: torch.dtype, vocabulary: int
) -> None:
    meta = torch.device("meta")
    call(subject, ROWS[0], meta, is_logits=is_logits, values=values, vocabulary=vocabulary)()


def fits(architecture: str, subject: SoftSubject, tile: FusedTile) -> bool:
    """Whether the tile's binaries compile, without spills, within the shared memory.

    Of logits and probabilities, in the table's dtype and float32, in parts and in one go. It
    takes the process over for compilation.
    """
    dtypes = dict.fromkeys((DTYPES[subject.bits], torch.float32))
    kinds = product((True, False), dtypes, (VOCABULARY, LEAST_PART))
    with only_tile(architecture, subject, tile):
        for kind in kinds:
            launcher = partial(_draw_and_call, subject, *kind)
            made = binaries_of(launcher, architecture, "_product_kernel")
            if any(binary.complaint for binary in made):
                return False
    return True


# --- on the GPU ---------------------------------------------------------------------

Agree = Callable[[Sequence[Tensor], Sequence[Tensor]], bool]


def measured(
    architecture: str, subject: SoftSubject, role: Role, tile: FusedTile | None, agree: Agree
) -> float | None:
    """Milliseconds of a role, by the vendor's product without a tile; ``None``: a wrong result."""
    from triton.testing import do_bench

    device, rows = torch.device("cuda"), ROWS[roles().index(role)]

    def time(run: Callable[[], Results]) -> float:
        return float(do_bench(run, warmup=5, rep=40, return_mode="median"))

    vendor = call(subject, rows, device, fused=False)
    if tile is None:
        return time(vendor)
    run = partial(fused_form.forward, *vendor.args)
    with only_tile(architecture, subject, tile):
        return time(run) if agree(run(), vendor()) else None


def choose(
    times: dict[FusedTile, tuple[float, ...]], vendor: Sequence[float | None]
) -> FusedTile | None:
    """The quickest tile, marked as preferred if it beats the vendor's product in every role.

    Args:
        times: milliseconds by role of each tile that fits and is right.
        vendor: those of the vendor's product.
    """
    if not times:
        return None
    best = min(times, key=lambda tile: math.prod(times[tile]))
    pairs = zip(times[best], vendor, strict=True)
    wins = all(theirs is not None and mine < theirs for mine, theirs in pairs)
    return replace(best, preferred=wins)


def described(tile: FusedTile | None) -> str:
    """In words, for the command's output."""
    if tile is None:
        return "none fits, not changed"
    verdict = "preferred" if tile.preferred else "the vendor's product is faster"
    return f"{astuple(tile)[:5]}, {verdict}"
