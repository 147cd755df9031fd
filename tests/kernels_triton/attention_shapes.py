"""Launch parameters that force every shape of work of the attention kernels on small inputs."""

from __future__ import annotations

import pytest

from boe_kernels import _attention_launch
from boe_kernels._attention_launch import Architecture, Tile, tile_key
from boe_kernels._triton import ARCHITECTURES

INTERPRETED = ARCHITECTURES[0]
"""The architecture whose parameters are used on the CPU."""


def architecture(multiprocessors: int, one_pass: tuple[Tile, ...]) -> Architecture:
    tiles = {
        "forward": (Tile(32, 32, 8, 1),),
        "rows_forward": (Tile(32, 32, 8, 1),),
        "one_pass": one_pass,
        **dict.fromkeys(
            ("dq", "dkdv", "rows_dq", "rows_dkdv"), (Tile(64, 32, 8, 1), Tile(32, 32, 8, 1))
        ),
        "mass": (Tile(32, 32, 8, 1),),
    }
    keys = list(_attention_launch.ARCHITECTURES[INTERPRETED].tiles["forward"])
    return Architecture(
        multiprocessors, {kernel: dict.fromkeys(keys, listed) for kernel, listed in tiles.items()}
    )


_ONE_PASS = (Tile(32, 32, 8, 1), Tile(128, 32, 8, 1))
SHAPES = {
    "one pass": architecture(1, _ONE_PASS),
    "one pass, parts of dq": architecture(64, _ONE_PASS),
    "split": architecture(1, ()),
    "split, parts of dq": architecture(64, ()),
}
"""All virtual rows in one tile or not; keys in one stretch or in several."""


def force(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_attention_launch.ARCHITECTURES, INTERPRETED, SHAPES[shape])


__all__ = ["SHAPES", "architecture", "force", "tile_key"]
