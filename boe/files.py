"""Folders that can be written to, and files that are written whole or not at all."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any


def prepare_directory(path: Path) -> None:
    """Make a folder for results, or find out before any work is done that it cannot be one.

    Raises:
        OSError: nothing can be written there; the message names the folder and why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"cannot write to {path}: it is a file") from None
    except OSError as error:
        raise type(error)(f"cannot write to {path}: {error.strerror}") from None
    _try_to_write(path, f"to {path}")


def check_writable(path: Path) -> None:
    """Find out before any work is done that a file could not be written.

    Raises:
        OSError: it could not; the message names the file and why.
    """
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a directory")
    if path.exists() and not path.is_file():
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: {path.parent} is not a directory")
    _try_to_write(path.parent, str(path))


def _try_to_write(folder: Path, wanted: str) -> None:
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"cannot write {wanted}: {error.strerror}") from None


def partial_path(path: Path) -> Path:
    """Where to write what is to become ``path``: a name that no other process has."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` whole or not at all; to a device or a pipe, whose place no file can take,
    as it comes."""
    is_file = path.is_file() or not path.exists()
    target = partial_path(path) if is_file else path
    try:
        target.write_text(text, encoding="utf-8")
        if is_file:
            target.replace(path)
    except BaseException as error:
        # Where the disk is full, what could be written would keep it so.
        if is_file:
            target.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as JSON, whole or not at all."""
    write_whole(path, format_json(content))


def format_json(content: dict[str, Any]) -> str:
    """JSON with one line per member of the outer lists, which keeps long results readable.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    members = []
    for key, value in content.items():
        if isinstance(value, list) and value:
            rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in value)
            text = f"[\n  {rows}\n ]"
        else:
            text = json.dumps(value, allow_nan=False)
        members.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(members) + "\n}\n"
