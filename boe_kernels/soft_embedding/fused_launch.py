"""How the fused soft write is launched: its tiles, how the ids are cut, when it is taken.

Tiles are data, in ``fused_tiles.json``: one for an architecture and a kind of table, whatever
the number of rows. How the ids are cut depends on the sizes of the table and the architecture
alone. So a row gives the same bits alone as in a batch, and no number of rows compiles anything.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from boe_kernels._attention_launch import ARCHITECTURES, Cut, ceil_div
from boe_kernels._triton import for_device, named_architecture

TABLE = Path(__file__).with_name("fused_tiles.json")

MOST_PARTS = 32
"""Into which the ids are cut: the sums of so many are added by one program."""
LEAST_PART = 1024
"""Ids; a vocabulary of fewer than two such parts is not cut."""


@dataclass(frozen=True)
class FusedTile:
    """What a program works on, and its launch options.

    Attributes:
        slots: rows to write for which a program works from beginning to end.
        ids: table rows that it reads in each step.
        width: embedding dimensions for which it works.
        warps: warps per program.
        stages: steps for which it reads ahead, plus one.
        preferred: whether ``auto`` takes the fused form before the vendor's product. Written by
            ``python -m bench tune --kernel soft_write``, from measured times; never of odd
            rows, which it does not time.
    """

    slots: int
    ids: int
    width: int
    warps: int
    stages: int
    preferred: bool = False

    @property
    def writing_width(self) -> int:
        """Dimensions of a program that writes the rows as well, for which it needs registers."""
        return self.width // 2

    @property
    def options(self) -> dict[str, int | bool]:
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


Tiles = dict[str, dict[str, FusedTile]]
"""By architecture and :func:`tile_key`."""


def tile_key(dtype: torch.dtype, vocabulary: int = 0, width: int = 0) -> str:
    """Under which the tile of a table (V, D) stands.

    Rows of odd length, which no 16 bytes divide, are loaded element by element. That takes
    registers, so that there are smaller tiles for it.
    """
    odd = ", odd" if vocabulary % 16 or width % 16 else ""
    return f"{8 * dtype.itemsize} bits{odd}"


def read_tiles(path: Path = TABLE) -> Tiles:
    """The tiles in a file."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return {
        architecture: {key: FusedTile(**facts) for key, facts in entries.items()}
        for architecture, entries in data.items()
    }


def write_tiles(tiles: Tiles, path: Path = TABLE) -> None:
    """Put them into a file, a line per tile."""

    def block(members: list[str], depth: int) -> str:
        inside = ",\n".join(" " * (depth + 1) + member for member in members)
        return "{\n" + inside + "\n" + " " * depth + "}"

    architectures = []
    for name, entries in tiles.items():
        lines = [f"{json.dumps(key)}: {json.dumps(asdict(tile))}" for key, tile in entries.items()]
        architectures.append(f"{json.dumps(name)}: {block(lines, 1)}")
    fresh = path.with_suffix(".new")
    fresh.write_text(block(architectures, 0) + "\n", encoding="utf-8")
    fresh.replace(path)


TILES = read_tiles()


def tile_for(table: Tensor) -> FusedTile:
    """The tile for an embedding table (V, D)."""
    return for_device(TILES, table.device)[tile_key(table.dtype, *table.shape)]


def cut_of(table: Tensor, tile: FusedTile) -> Cut:
    """The ids in parts: as many as occupy the device where the rows fit one tile."""
    vocabulary, width = table.shape
    multiprocessors = for_device(ARCHITECTURES, table.device).multiprocessors
    programs = multiprocessors * max(1, 8 // tile.warps)
    parts = min(programs // ceil_div(width, tile.width), MOST_PARTS, vocabulary // LEAST_PART)
    return Cut.of(vocabulary, max(1, parts), tile.ids)


def why_not_preferred(
    device: torch.device, dtype: torch.dtype, table: tuple[int, int] | None = None
) -> str | None:
    """Why ``auto`` passes the fused form over for a table (V, D) where it could run."""
    _, architecture = named_architecture(device)
    key = tile_key(dtype, *(table or ()))
    if TILES[architecture][key].preferred:
        return None
    return (
        f"no measurement on {architecture} ({key}) has shown it to be faster than the vendor's "
        "product"
    )
