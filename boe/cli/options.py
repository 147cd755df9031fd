"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[
    Path | None,
    typer.Option("--json", help="Write the result as JSON to this file; - for standard output."),
]
Seed = Annotated[int, typer.Option(help="Fixes items and all random draws.")]
Difficulty = Annotated[str, typer.Option(help="Of the task: easy, medium, hard … (docs/tasks.md).")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default.")]
Count = Annotated[int, typer.Option("--items", "--puzzles", min=1, help="How many.")]
Batch = Annotated[int, typer.Option(min=1, help="Items decoded together.")]


def use_threads(threads: int | None) -> None:
    """Set torch's CPU threads, if a number is given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
