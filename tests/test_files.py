"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from boe.files import check_writable, partial_path, prepare_directory, write_json, write_whole


def test_what_cannot_be_written_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_whole(path, "old")
    right = Path.write_text

    def full(self: Path, text: str, **options: object) -> int:
        right(self, text[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write_whole(path, "newer")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_json(pipe, {"a": 1})
    reader.join(timeout=30)
    assert read == ['{\n "a": 1\n}\n']
    assert pipe.is_fifo()


def test_what_could_not_be_written_is_found_out_before_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "new.json")
    assert os.listdir(tmp_path) == []

    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("boe.files.TemporaryFile", refuse)
    path = tmp_path / "result.json"
    with pytest.raises(PermissionError, match=f"^cannot write {path}: Permission denied$"):
        check_writable(path)
    with pytest.raises(PermissionError, match=f"^cannot write to {tmp_path}: Permission denied$"):
        prepare_directory(tmp_path)


def test_two_that_write_one_file_at_once_do_not_take_each_others_part(tmp_path: Path) -> None:
    assert partial_path(tmp_path / "a.json") != partial_path(tmp_path / "a.json")
