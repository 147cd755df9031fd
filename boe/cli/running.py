"""Running studies in the terminal: a progress bar, a file to resume from, Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from boe.cli.output import progress_on, silence_transformers
from boe.evaluate.running import Run, run_study
from boe.evaluate.store import RecordStore
from boe.evaluate.study import Cell, Study
from boe.tasks import TASKS, Task

RECORDS = "records.jsonl"
"""The file in an output directory that an interrupted run goes on from."""

StudyRunner = Callable[[Study, Task, Console, Path | None], Run]
"""Runs a study on its task and shows how far it is; the path is of :data:`RECORDS`."""


def task_named(name: str, difficulty: str) -> Task:
    """A task object.

    Raises:
        ValueError: no such task or difficulty.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name](difficulty)


def run_visibly(study: Study, task: Task, console: Console, records: Path | None) -> Run:
    """Run a study on its task with a progress bar, from where ``records`` left off."""
    silence_transformers()
    with RecordStore(records) as store:
        with console.status(f"making {study.items} items of {study.task}, {study.difficulty}"):
            items = task.items(study.items, study.item_seed, study.split)
        with console.status("loading the model"):
            denoiser = task.denoiser()
        with progress_on(console) as progress:
            bar = progress.add_task("decoding", total=study.decodes)

            def advance(cell: Cell, count: int) -> None:
                progress.update(bar, advance=count, description=f"{cell.sampler}, {cell.setting}")

            run = run_study(
                study, task, items=items, denoiser=denoiser, store=store, on_record=advance
            )
    if run.resumed:
        console.print(f"{run.resumed} of {len(run.records)} results were there already")
    return run
