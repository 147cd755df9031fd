"""An append-only file of results that a run can be resumed from.

Each line is a JSON object. The first names the schema. ``{"cell": D, "of": {…}}`` says what
the digest D stands for: everything that decides a result. ``{"cell": D, "item": n, …}`` is
the result of one item. A batch's lines are written at once and synced, so an interruption at
any moment leaves whole batches, and at most one unfinished line at the end of the file,
which is cut off when the file is next opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

SCHEMA = "boe/records/1"


class RecordStore:
    """Results by cell and item.

    Args:
        path: the file; ``None`` keeps everything in memory.

    Raises:
        ValueError: the file is not one of these, or a line in its midst is damaged.
        BlockingIOError: another process has it open.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._of: dict[str, dict[str, Any]] = {}
        self._results: dict[str, dict[int, dict[str, Any]]] = {}
        self._file: int | None = None
        if path is None:
            return
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(self._file, path)
            self._read(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RecordStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def results(self, of: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """The stored results of the cell that ``of`` describes, by item number."""
        return self._results.get(digest_of(of), {})

    def append(self, of: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
        """Add results, each with its ``item``, to the cell that ``of`` describes.

        Raises:
            ValueError: an item that the cell already has, or a number JSON cannot hold.
        """
        cell = digest_of(of)
        stored = self._results.setdefault(cell, {})
        lines: list[dict[str, Any]] = []
        if cell not in self._of:
            lines.append({"cell": cell, "of": dict(of)})
        for result in results:
            if result["item"] in stored:
                raise ValueError(f"item {result['item']} of cell {cell} is already stored")
            lines.append({"cell": cell, **result})
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        if self._file is not None:
            _write_all(self._file, text.encode())
        for line in lines:
            self._take(line)

    def _read(self, path: Path) -> None:
        assert self._file is not None
        content = path.read_bytes()
        whole, _, rest = content.rpartition(b"\n")
        if rest:  # the last line was being written when the process ended
            os.ftruncate(self._file, len(content) - len(rest))
        lines = whole.split(b"\n") if whole else []
        if not lines:
            _write_all(self._file, (json.dumps({"schema": SCHEMA}) + "\n").encode())
            return
        for number, text in enumerate(lines, 1):
            try:
                line = json.loads(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            if number == 1:
                if not isinstance(line, dict) or line.get("schema") != SCHEMA:
                    raise ValueError(f"{path} is not a file of results ({SCHEMA})")
                continue
            if not _is_record(line):
                raise ValueError(f"{path}, line {number}: is no record, got {text[:60].decode()}")
            if line["cell"] not in self._of and "of" not in line:
                raise ValueError(f"{path}, line {number}: nothing says what its cell is")
            self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        cell = line["cell"]
        if "of" in line:
            self._of[cell] = line["of"]
            return
        result = {name: value for name, value in line.items() if name != "cell"}
        self._results.setdefault(cell, {})[result["item"]] = result


def _is_record(line: Any) -> bool:
    """Whether a line is of the form that :meth:`RecordStore.append` gives it."""
    if not isinstance(line, dict) or not isinstance(line.get("cell"), str):
        return False
    return isinstance(line.get("of"), dict) if "of" in line else type(line.get("item")) is int


def digest_of(of: Mapping[str, Any]) -> str:
    """A digest of what describes a cell."""
    text = json.dumps(of, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _write_all(file: int, data: bytes) -> None:
    """Append all of ``data``, or, where the disk is full, nothing."""
    before = os.fstat(file).st_size
    try:
        while data:
            data = data[os.write(file, data) :]
        os.fsync(file)
    except BaseException:
        os.ftruncate(file, before)
        raise


def _lock(file: int, path: Path) -> None:
    """Keep other processes out until the file is closed, also by a kill."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has no such locks
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"{path} is in use by another process") from None
