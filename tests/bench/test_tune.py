"""Choosing tiles from measured times. The times are made up, and nothing is compiled."""

from __future__ import annotations

import json
import math
from dataclasses import astuple

import pytest
import torch

from bench import tiles, tune
from bench.__main__ import main
from bench.binaries import Binary
from bench.tiles import KERNELS, Role, Shape, Subject, candidates, only_tile, roles
from bench.tune import Table, Times, table_text, tune_entry
from boe_kernels import _attention_launch
from boe_kernels._attention_launch import ARCHITECTURES, HEAD_DIMS, TABLE, Tile
from boe_kernels._triton import recording

ARCHITECTURE = "sm_90"
FORWARD = Subject("forward", 16, 64, False)
SUBJECTS = [Subject(kernel, 16, 64, hidden) for kernel in KERNELS for hidden in (False, True)]


@pytest.fixture
def table(monkeypatch):
    """The table, put back afterwards."""
    monkeypatch.setattr(
        _attention_launch, "ARCHITECTURES", copy := dict(_attention_launch.ARCHITECTURES)
    )
    monkeypatch.setattr(tune, "ARCHITECTURES", copy)
    return copy


class Machine:
    """Fits and times tiles by rules, and remembers which it was asked for."""

    def __init__(self, milliseconds, fitting=lambda tile: True):
        self.milliseconds, self.fitting = milliseconds, fitting
        self.tried, self.timed = [], []

    def fit(self, wanted):
        self.tried += [tile for *_, tile in wanted]
        return [self.fitting(tile) for *_, tile in wanted]

    def measure(self, architecture, subject, role, tile):
        self.timed.append(tile)
        return self.milliseconds(role, tile)

    def tune(self, subject, times):
        return tune_entry(ARCHITECTURE, subject, times, self.fit, self.measure)


def times(tmp_path, where="a GPU"):
    return Times(tmp_path / "times.jsonl", where)


def distance(tile, wanted):
    return sum(abs(math.log2(a / b)) for a, b in zip(astuple(tile), wanted, strict=True))


# --- choosing -----------------------------------------------------------------------


def test_the_quickest_tile_is_chosen(tmp_path):
    machine = Machine(lambda role, tile: 1 + distance(tile, (64, 128, 8, 3)))
    assert machine.tune(FORWARD, times(tmp_path)) == [Tile(64, 128, 8, 3)]


def test_each_role_has_its_tile_and_one_that_serves_both_stands_once(tmp_path):
    best = {"many programs": (128, 64, 8, 3), "few programs": (64, 32, 4, 3)}
    machine = Machine(lambda role, tile: 1 + distance(tile, best[role.name]))
    chosen = machine.tune(Subject("dq", 16, 64, False), times(tmp_path))
    assert chosen == [Tile(*best["many programs"]), Tile(*best["few programs"])]
    both = Machine(lambda role, tile: 1 + distance(tile, (128, 64, 8, 3)))
    assert both.tune(Subject("dq", 16, 64, True), times(tmp_path)) == [Tile(128, 64, 8, 3)]


def test_one_pass_has_a_tile_for_each_number_of_rows(tmp_path):
    machine = Machine(lambda role, tile: tile.streamed)
    chosen = machine.tune(Subject("one_pass", 16, 64, False), times(tmp_path))
    assert [tile.held for tile in chosen] == [64, 128]


def test_a_tile_that_does_not_fit_is_not_timed(tmp_path):
    machine = Machine(lambda role, tile: 1 / tile.held, lambda tile: tile.held < 128)
    (chosen,) = machine.tune(FORWARD, times(tmp_path))
    assert chosen.held == 64
    assert 128 in {tile.held for tile in machine.tried}
    assert 128 not in {tile.held for tile in machine.timed}


def test_a_tile_with_a_wrong_result_is_not_chosen(tmp_path):
    machine = Machine(lambda role, tile: None if tile.warps == 8 else 1.0)
    assert machine.tune(FORWARD, times(tmp_path))[0].warps == 4


def test_an_entry_that_nothing_fits_is_left_as_it_is(tmp_path):
    machine = Machine(lambda role, tile: 1.0, lambda tile: False)
    assert machine.tune(FORWARD, times(tmp_path)) == []


def test_wrong_results_and_nan_do_notagree():
    ones = torch.ones(3)
    assert tune.agree([ones], [ones * 1.01])
    assert not tune.agree([ones], [ones * 1.1])
    assert not tune.agree([ones * torch.nan], [ones])


# --- going on -----------------------------------------------------------------------


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    def until_interrupted(role, tile):
        if len(machine.timed) > 5:
            raise KeyboardInterrupt
        return float(tile.held)

    machine = Machine(until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        machine.tune(FORWARD, times(tmp_path))
    path = tmp_path / "times.jsonl"
    path.write_text(path.read_text()[:-4])
    again = Machine(lambda role, tile: float(tile.held))
    (chosen,) = again.tune(FORWARD, times(tmp_path))
    assert chosen.held == 32
    # The last time was cut in half, and is measured again.
    assert set(again.timed) & set(machine.timed) == {machine.timed[4], machine.timed[5]}


def test_a_run_whose_time_is_over_keeps_its_times_and_says_so(tmp_path, monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(tune.time, "time", lambda: next(clock))
    machine = Machine(lambda role, tile: float(tile.held))
    with pytest.raises(tune.OutOfTime):
        machine.tune(FORWARD, Times(tmp_path / "times.jsonl", "a GPU", until=2.5))
    assert len(machine.timed) == 3
    again = Machine(lambda role, tile: float(tile.held))
    monkeypatch.undo()
    again.tune(FORWARD, times(tmp_path))
    assert not set(again.timed) & set(machine.timed)


def test_times_of_another_gpu_or_triton_are_not_used(tmp_path):
    first = Machine(lambda role, tile: 1.0)
    first.tune(FORWARD, times(tmp_path))
    other = Machine(lambda role, tile: 1.0)
    other.tune(FORWARD, times(tmp_path, "another GPU"))
    assert other.timed == first.timed
    third = Machine(lambda role, tile: 1.0)
    third.tune(FORWARD, times(tmp_path))
    assert third.timed == []


# --- what is tried ------------------------------------------------------------------


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_candidates_keep_steps_of_the_key_gradient_within_tiles_of_the_query_gradient(subject):
    table = ARCHITECTURES[ARCHITECTURE]
    for role in roles(subject):
        tried = candidates(subject, role, table)
        assert len(tried) == len(set(tried)) > 0
        form = "rows_" if subject.kernel.startswith("rows_") else ""
        for tile in tried:
            if subject.kernel in ("dq", "rows_dq"):
                steps = [other.streamed for other in table.tiles[f"{form}dkdv"][subject.key]]
                assert all(tile.held % step == 0 for step in steps)
            if subject.kernel in ("dkdv", "rows_dkdv"):
                helds = [other.held for other in table.tiles[f"{form}dq"][subject.key]]
                assert all(held % tile.streamed == 0 for held in helds)


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_a_call_of_a_subject_launches_its_kernel_in_the_tile(subject, table):
    role = roles(subject)[0]
    # None of the tiles in the table.
    tile = Tile(role.held or 16, 16, 2, 7)
    count = role.held or 64
    with only_tile(ARCHITECTURE, subject, tile), recording(ARCHITECTURE) as launches:
        tiles.call(subject, Shape(1, 2, 256, count), torch.device("meta"))()
    stages = {
        launch.options["num_stages"]
        for launch in launches
        if launch.kernel.__name__ == KERNELS[subject.kernel]
    }
    assert stages == {7}
    assert table[ARCHITECTURE] is ARCHITECTURES[ARCHITECTURE], "the table is put back"


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_a_tile_has_to_fit_calls_without_a_mask_with_one_and_with_a_bias(
    subject, table, monkeypatch
):
    masks = []

    def binaries_of(call, architecture, kernel):
        with recording(architecture) as launches:
            call()
        for launch in launches:
            if launch.kernel.__name__ == kernel:
                named = dict(zip(launch.kernel.arg_names, launch.args, strict=False))
                masks.append(None if named["mask_ptr"] is None else named["mask_ptr"].dtype)
        return []

    monkeypatch.setattr(tiles, "binaries_of", binaries_of)
    role = roles(subject)[0]
    assert tiles.fits(ARCHITECTURE, subject, role, Tile(role.held or 64, 32, 4, 2))
    assert set(masks) == {None, torch.bool, torch.float32}


def test_a_tile_that_spills_with_a_bias_alone_does_not_fit(table, monkeypatch):
    def binaries_of(call, architecture, kernel):
        with recording(architecture) as launches:
            call()
        biased = any(
            isinstance(x, torch.Tensor) and x.dtype == torch.float32 and x.dim() == 2
            for x in launches[0].args
        )
        yield Binary("", "", kernel, architecture, "", warps=4, registers=9, spilled=8 * biased)

    monkeypatch.setattr(tiles, "binaries_of", binaries_of)
    assert not tiles.fits(ARCHITECTURE, FORWARD, roles(FORWARD)[0], Tile(64, 64, 4, 2))
    monkeypatch.setattr(
        tiles, "hidings", lambda subject: (tiles.Hiding(), tiles.Hiding(torch.bool))
    )
    assert tiles.fits(ARCHITECTURE, FORWARD, roles(FORWARD)[0], Tile(64, 64, 4, 2))


def test_a_role_is_timed_on_shapes_with_many_programs_and_with_few():
    many, few = roles(Subject("dkdv", 16, 128, False))
    assert isinstance(many, Role)
    assert many.shapes[0].batch > few.shapes[0].batch


# --- the table ----------------------------------------------------------------------


def test_the_committed_table_is_as_it_would_be_written():
    assert table_text(json.loads(TABLE.read_text())) == TABLE.read_text()


def test_an_entry_is_replaced_and_no_other(table, tmp_path):
    path = tmp_path / "tiles.json"
    path.write_text(TABLE.read_text())
    Table(path).write(ARCHITECTURE, FORWARD, [Tile(16, 32, 4, 1)])
    before, after = (json.loads(p.read_text()) for p in (TABLE, path))
    entries = after[ARCHITECTURE]["tiles"]["forward"]
    assert entries[FORWARD.key] == [[16, 32, 4, 1]]
    entries[FORWARD.key] = before[ARCHITECTURE]["tiles"]["forward"][FORWARD.key]
    assert after == before
    assert table[ARCHITECTURE].tiles["forward"][FORWARD.key] == (Tile(16, 32, 4, 1),)


def test_without_a_gpu_the_command_says_that_it_needs_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="bench tune needs a GPU"):
        main(["tune"])


def test_the_command_times_every_entry_that_it_is_asked_for(monkeypatch, table, tmp_path, capsys):
    path = tmp_path / "tiles.json"
    path.write_text(TABLE.read_text())
    machine = Machine(lambda role, tile: 1 + distance(tile, (64, 32, 4, 2)))

    class Pool:
        def __init__(self, *arguments, **options): ...

        def __enter__(self):
            return self

        def __exit__(self, *error): ...

        def map(self, function, *columns):
            return machine.fit(list(zip(*columns, strict=True)))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune, "hardware_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(tune, "for_device", lambda table, device: ARCHITECTURE)
    monkeypatch.setattr(tune, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(tune, "measured", machine.measure)
    monkeypatch.setattr(tune, "TABLE", path)
    kept = tmp_path / "times.jsonl"
    main(["tune", "--kernel", "forward", "mass", "--width", "64", "--times", str(kept)])
    written = json.loads(path.read_text())[ARCHITECTURE]["tiles"]
    for kernel in ("forward", "mass"):
        for key in ("16 bits, 64", "16 bits, 64, hidden"):
            assert written[kernel][key] == [[64, 32, 4, 2]]
    assert "sm_90, forward, 16 bits, 64: (64, 32, 4, 2)" in capsys.readouterr().out
    assert 64 in HEAD_DIMS


def test_a_tile_that_fails_when_it_runs_is_out_and_the_others_are_timed(table, tmp_path, capsys):
    def milliseconds(role, tile):
        if tile.held == 64:
            raise RuntimeError("out of resource: shared memory")
        return distance(tile, astuple(tile))

    machine = Machine(milliseconds)
    chosen = machine.tune(FORWARD, times(tmp_path))
    assert chosen
    assert all(tile.held != 64 for tile in chosen)
    assert "out of resource: shared memory" in capsys.readouterr().out
    again = Machine(milliseconds)
    again.tune(FORWARD, times(tmp_path))
    assert again.timed == []


def test_tables_can_be_written_elsewhere(tmp_path):
    attention, soft = tune.tables_in(tmp_path / "out")
    assert attention.read_bytes() == TABLE.read_bytes()
    assert soft.read_bytes() == tune.SOFT_TABLE.read_bytes()
    # What a run has written is there when it goes on.
    attention.write_text("{}")
    assert tune.tables_in(tmp_path / "out")[0].read_text() == "{}"
    assert tune.tables_in(None) == (TABLE, tune.SOFT_TABLE)
