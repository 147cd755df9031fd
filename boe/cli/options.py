"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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

SHARDED: dict[str, Any] = {"rich_help_panel": "Work in shards (docs/scaling.md)"}
"""Where help lists the options of work in shards."""
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes here; by default one per GPU.", **SHARDED)
]
Node = Annotated[str, typer.Option(help="k/n: this is the k-th of n hosts, from 0.", **SHARDED)]
Executor = Annotated[str, typer.Option(help="local, slurm or ray.", **SHARDED)]
ExecutorOption = Annotated[
    list[str] | None,
    typer.Option(help="name=value, an argument of datatrove's executor.", **SHARDED),
]


def use_threads(threads: int | None) -> None:
    """Set torch's CPU threads, if a number is given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def sharded_options_given(context: typer.Context) -> list[str]:
    """The options of work in shards that the command line or the environment gives."""
    return [
        option.opts[0]
        for option in context.command.params
        if getattr(option, "rich_help_panel", None) == SHARDED["rich_help_panel"]
        and (source := context.get_parameter_source(option.name or "")) is not None
        and source.name != "DEFAULT"
    ]
