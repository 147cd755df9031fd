"""The file that a run is resumed from."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest

from boe.evaluate import RecordStore

CELL = {"sampler": "confidence", "seed": 0}
OTHER = {"sampler": "confidence", "seed": 1}


def rows(*items: int) -> list[dict[str, object]]:
    return [{"item": item, "right": item % 2 == 0} for item in items]


def test_what_was_appended_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with RecordStore(path) as store:
        store.append(CELL, rows(0, 1))
        store.append(OTHER, rows(0))
        store.append(CELL, rows(2))
    with RecordStore(path) as store:
        assert list(store.results(CELL).values()) == rows(0, 1, 2)
        assert list(store.results(OTHER).values()) == rows(0)
        assert store.results({"sampler": "boe"}) == {}


def test_a_cell_is_found_whatever_the_order_of_its_keys() -> None:
    store = RecordStore()
    store.append({"a": 1, "b": 2}, rows(0))
    assert store.results({"b": 2, "a": 1}) != {}
    assert store.results({"a": 1, "b": 3}) == {}


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_an_unfinished_last_line_is_cut_off_and_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "r.jsonl"
    with RecordStore(path) as store:
        store.append(CELL, rows(0))
        store.append(CELL, rows(1))
    path.write_bytes(path.read_bytes()[:-cut])
    with RecordStore(path) as store:
        assert list(store.results(CELL)) == [0]
        store.append(CELL, rows(1))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["item"] for line in lines if "item" in line] == [0, 1]


def test_a_file_that_was_cut_in_its_first_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"sche')
    with RecordStore(path) as store:
        store.append(CELL, rows(0))
    with RecordStore(path) as store:
        assert list(store.results(CELL)) == [0]


def test_an_item_is_stored_once() -> None:
    store = RecordStore()
    store.append(CELL, rows(0))
    with pytest.raises(ValueError, match=r"item 0 of cell .* is already stored"):
        store.append(CELL, rows(0))


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with RecordStore(path) as store:
        store.append(CELL, rows(0, 1))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "{oops", lines[3]]) + "\n")
    with pytest.raises(ValueError, match=r"r\.jsonl, line 3"):
        RecordStore(path)
    for other in ("5", "[]", '{"cell": "x"}', '{"cell": 1, "of": {}}', '{"of": {}}'):
        path.write_text("\n".join([*lines[:2], other]) + "\n")
        with pytest.raises(ValueError, match=rf"line 3: is no record, got {re.escape(other)}"):
            RecordStore(path)
    path.write_text("\n".join([lines[0], lines[2]]) + "\n")
    with pytest.raises(ValueError, match="line 2: nothing says what its cell is"):
        RecordStore(path)


def test_another_kind_of_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="is not a file of results"):
        RecordStore(path)
    assert path.read_text() == '{"a": 1}\n'


def test_two_processes_cannot_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with RecordStore(path), pytest.raises(BlockingIOError, match="is in use by another process"):
        RecordStore(path)
    RecordStore(path).close()


def test_numbers_that_json_cannot_hold_are_refused() -> None:
    store = RecordStore()
    with pytest.raises(ValueError, match="JSON"):
        store.append({"x": float("nan")}, rows(0))
    with pytest.raises(ValueError, match="JSON"):
        store.append(CELL, [{"item": 0, "cost": float("nan")}])
    assert store.results(CELL) == {}


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"
    write = os.write
    with RecordStore(path) as store:
        store.append(CELL, rows(0))
        before = path.read_bytes()

        def fill(file: int, data: bytes) -> int:
            if len(data) < 9:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, data[: len(data) - 8])

        monkeypatch.setattr(os, "write", fill)
        with pytest.raises(OSError, match="No space left"):
            store.append(CELL, rows(1))
        monkeypatch.undo()
        assert path.read_bytes() == before
        store.append(CELL, rows(1))
    with RecordStore(path) as store:
        assert set(store.results(CELL)) == {0, 1}
