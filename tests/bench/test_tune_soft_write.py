"""Choosing tiles of the fused soft write. The times are made up, and nothing is compiled."""

from __future__ import annotations

import math
from dataclasses import astuple, replace
from functools import partial
from typing import Any

import pytest
import torch

from bench import soft_tiles, tune
from bench.__main__ import main
from bench.soft_tiles import ROWS, SoftSubject, call, candidates, choose, only_tile, roles
from bench.tune import Times, tune_soft_write
from boe_kernels._triton import ARCHITECTURES, recording
from boe_kernels.soft_embedding import fused_launch
from boe_kernels.soft_embedding.fused_launch import TILES, FusedTile, read_tiles, write_tiles

ARCHITECTURE = "sm_90"
HALF = SoftSubject(16)
BEST = FusedTile(64, 64, 128, 4, 3)


class Machine:
    """Fits and times tiles by rules, and remembers which it was asked for."""

    def __init__(self, vendor=0.5, fitting=lambda tile: True, right=lambda tile: True):
        self.vendor, self.fitting, self.right = vendor, fitting, right
        self.tried, self.timed = [], []

    def fit(self, wanted):
        self.tried += [tile for *_, tile in wanted]
        return [self.fitting(tile) for *_, tile in wanted]

    def measure(self, architecture, subject, role, tile):
        if tile is None:
            return self.vendor
        self.timed.append((role.name, tile))
        far = zip(astuple(tile)[:5], astuple(BEST)[:5], strict=True)
        far = sum(abs(math.log2(a / b)) for a, b in far)
        return 0.4 + far if self.right(tile) else None

    def tune(self, tmp_path):
        times = Times(tmp_path / "times.jsonl", "a GPU")
        return tune_soft_write(ARCHITECTURE, HALF, times, self.fit, self.measure)


def test_the_quickest_tile_is_preferred_if_it_beats_the_vendors_product(tmp_path):
    assert Machine().tune(tmp_path) == replace(BEST, preferred=True)


@pytest.mark.parametrize("vendor", [0.3, None], ids=["quicker", "not timed"])
def test_it_is_not_preferred_otherwise(tmp_path, vendor):
    assert Machine(vendor).tune(tmp_path) == BEST


def test_it_has_to_win_at_every_number_of_rows():
    other = FusedTile(32, 32, 128, 4, 2)
    times = {BEST: (1.0, 3.0), other: (2.0, 2.0)}
    assert choose(times, (1.1, 2.9)) == BEST
    assert choose(times, (1.1, 3.1)) == replace(BEST, preferred=True)
    assert choose({}, (1.0, 1.0)) is None


def test_tiles_that_do_not_fit_are_not_timed_and_wrong_ones_do_not_count(tmp_path):
    machine = Machine(fitting=lambda tile: tile.warps == 8, right=lambda tile: tile.stages == 4)
    chosen = machine.tune(tmp_path)
    assert chosen.warps == 8
    assert chosen.stages == 4
    assert {tile.warps for _, tile in machine.timed} == {8}
    second = [tile for name, tile in machine.timed if name == f"{ROWS[1]} rows"]
    assert {tile.stages for tile in second} == {4}, "what is wrong at 64 rows is not timed again"
    assert Machine(fitting=lambda tile: False).tune(tmp_path / "other") is None


def test_a_second_run_times_nothing_but_the_vendors_product(tmp_path):
    first = Machine()
    chosen = first.tune(tmp_path)
    assert len(first.timed) == len(ROWS) * len(candidates())
    again = Machine(vendor=0.3)
    assert again.tune(tmp_path) == replace(chosen, preferred=False)
    assert (again.tried, again.timed) == ([], [])


def test_the_committed_tiles_are_among_the_candidates():
    for architecture in ARCHITECTURES:
        assert replace(TILES[architecture][HALF.key], preferred=False) in candidates()


@pytest.mark.parametrize("fused", [True, False])
def test_the_calls_that_are_timed_launch_the_form_that_is_meant(fused):
    tile = FusedTile(32, 64, 128, 4, 2)
    run = call(HALF, 64, torch.device("meta"), fused=fused)
    with only_tile(ARCHITECTURE, HALF, tile), recording(ARCHITECTURE) as launches:
        canvas, delta = run()
    assert canvas.shape[1:] == (1024, 4096)
    assert delta.shape == (1, 64, 4096)
    names = [launch.kernel.__name__ for launch in launches]
    assert names == (["_product_kernel", "_join_kernel"] if fused else ["_blend_kernel"])
    assert (launches[0].options.get("BLOCK_SLOTS") == 32) == fused
    assert TILES[ARCHITECTURE][HALF.key] != tile, "the table is as it was"


def test_what_fits_is_asked_of_every_kind_of_call(monkeypatch):
    seen = []

    def binaries_of(launcher, architecture, kernel):
        with recording(architecture) as launches:
            launcher()
        (product,) = [launch for launch in launches if launch.kernel.__name__ == kernel]
        options = product.options
        seen.append((product.args[0].dtype, options["IS_LOGITS"], options["SPLIT"]))
        return []

    monkeypatch.setattr(soft_tiles, "binaries_of", binaries_of)
    assert soft_tiles.fits(ARCHITECTURE, HALF, BEST)
    assert len(set(seen)) == len(seen) == 2**3


def test_times_are_of_results_that_agree_with_the_vendors_product(monkeypatch):
    ones = torch.ones(3), torch.ones(3)
    asked = []

    def made_up(subject, rows, device, *, fused):
        asked.append((rows, device.type, fused))
        return partial(lambda *inputs: ones, "inputs")

    monkeypatch.setattr(soft_tiles, "call", made_up)
    monkeypatch.setattr(soft_tiles.fused_form, "forward", lambda *inputs: (inputs, ones[1]))
    monkeypatch.setattr("triton.testing.do_bench", lambda run, **options: 0.25)

    def time(tile: FusedTile | None, agreeing: bool = True) -> float | None:
        def agree(mine: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
            assert mine == (("inputs",), ones[1]), "of the same inputs"
            assert theirs is ones
            return agreeing

        return soft_tiles.measured(ARCHITECTURE, HALF, roles()[1], tile, agree)

    assert time(BEST) == 0.25
    assert time(BEST, agreeing=False) is None
    assert time(None, agreeing=False) == 0.25
    assert set(asked) == {(ROWS[1], "cuda", False)}


def test_the_command_writes_the_table(monkeypatch, tmp_path, capsys):
    path = tmp_path / "tiles.json"
    tiles = read_tiles()
    write_tiles(tiles, path)
    machine = Machine()

    class Pool:
        def __init__(self, *arguments, **options): ...

        def __enter__(self):
            return self

        def __exit__(self, *error): ...

        def map(self, function, *columns):
            assert function is soft_tiles.fits
            return machine.fit(list(zip(*columns, strict=True)))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune, "hardware_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(tune, "for_device", lambda table, device: ARCHITECTURE)
    monkeypatch.setattr(tune, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(tune, "SOFT_TABLE", path)
    monkeypatch.setattr(tune, "TILES", tiles)
    monkeypatch.setattr(soft_tiles, "measured", lambda *inputs, agree: machine.measure(*inputs))
    kept = tmp_path / "times.jsonl"
    main(["tune", "--kernel", "soft_write", "--times", str(kept)])
    written, before = read_tiles(path), read_tiles()
    assert written[ARCHITECTURE][HALF.key] == replace(BEST, preferred=True)
    written[ARCHITECTURE][HALF.key] = before[ARCHITECTURE][HALF.key]
    assert written == before
    assert "sm_90, soft_write, 16 bits: (64, 64, 128, 4, 3), preferred" in capsys.readouterr().out
    assert fused_launch.TABLE.exists()
