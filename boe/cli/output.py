"""Where results go: the terminal, and JSON files or standard output."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from boe.files import check_writable, format_json, write_json

# More columns than any table has: a file or a pipe cuts nothing off.
_UNCUT = 10_000
_NARROW = 110


def console_for(json_path: Path | None = None) -> Console:
    """A console for people: standard error where standard output is to hold JSON alone."""
    console = Console(stderr=str(json_path) == "-")
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNCUT
    return console


def show_table(console: Console, table: Table) -> None:
    """Print a table; its cells stand closer where the console is narrow."""
    if console.width < _NARROW:
        table.padding = (0, 0)
    console.print(table)


def progress_on(console: Console, text: str = "{task.description}") -> Progress:
    """A bar that goes when it is done; where the console is no terminal there is none.

    Args:
        text: what stands before it, in rich's form.
    """
    shown = console.is_terminal
    return Progress(
        TextColumn(text),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        # Before rich 14.3 a bar that is not shown prints an empty line when it is done.
        console=console if shown else Console(quiet=True),
        transient=True,
        disable=not shown,
    )


def silence_transformers() -> None:
    """Keep transformers' own progress bars out of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def check_json_path(path: Path | None) -> None:
    """Find out that a result could not be written before work is spent on it."""
    if path is not None and str(path) != "-":
        check_writable(path)


def emit_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is None:
        return
    if str(path) == "-":
        sys.stdout.write(format_json(content))
    else:
        write_json(path, content)
