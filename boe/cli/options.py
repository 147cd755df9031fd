"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
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


def refuse_sharded_options(context: typer.Context, why: str) -> None:
    """Refuse the options of work in shards; ``why`` goes into the message behind the first."""
    panel = SHARDED["rich_help_panel"]
    params = context.command.params
    sharded = [o.name or "" for o in params if getattr(o, "rich_help_panel", None) == panel]
    refuse_options(context, sharded, why)


def refuse_options(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuse options that would do nothing, if the command line or the environment gives one.

    Raises:
        typer.BadParameter: the first that is given, with ``why`` behind it.
    """
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in names and source is not None and source.name != "DEFAULT":
            raise typer.BadParameter(f"{option.opts[0]} {why}")
