"""What every benchmark does around its measurements: options, progress, gate, saving."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.results import RESULTS, Environment, Measurement, save
from bench.terminal import console


@dataclass(frozen=True)
class Options:
    """The command line of a benchmark."""

    benchmark: str
    device: torch.device
    quick: bool
    output: Path
    """The CSV file that the results are merged into."""


Case = TypeVar("Case")
"""One shape and dtype; its ``str`` stands in the progress bar."""


class WrongResultError(Exception):
    """A provider's results are wrong, so that its times mean nothing."""


@dataclass
class Outcome:
    """What came of a benchmark's cases."""

    measurements: list[Measurement] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    interrupted: bool = False

    def exit(self) -> None:
        """Leave with status 130 after Ctrl-C and 1 if a case was refused; else return."""
        if self.interrupted:
            raise SystemExit(130)
        if self.refused:
            raise SystemExit(1)


def parse_options(benchmark: str, argv: Sequence[str]) -> Options:
    """Read the command line, and set the number of threads that it asks for."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {benchmark}")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it works")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument(
        "--output",
        type=Path,
        help="CSV file to merge the results into (default: bench/results/, "
        "and a new temporary folder with --quick)",
    )
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if arguments.threads is not None:
        if arguments.threads < 1:
            parser.error(f"--threads must be at least 1, got {arguments.threads}")
        torch.set_num_threads(arguments.threads)
    output = arguments.output
    if output is None:
        folder = Path(tempfile.mkdtemp(prefix="boe-bench-")) if arguments.quick else RESULTS
        output = folder / f"{benchmark}-{arguments.device}.csv"
    return Options(benchmark, torch.device(arguments.device), arguments.quick, output)


def run_cases(
    options: Options, cases: Sequence[Case], measure: Callable[[Case], Iterator[Measurement]]
) -> Outcome:
    """Measure every case and save the results, also when interrupted by Ctrl-C.

    ``measure`` yields measurements as it makes them, and raises WrongResultError where
    a provider is wrong: nothing more of that case is measured, and the others go on.
    """
    terminal = console()
    environment = Environment.of(options.device)
    terminal.print(
        f"[bold]{options.benchmark}[/] on {environment.hardware}, "
        f"torch {environment.torch_version}, commit {environment.commit}"
    )
    outcome = Outcome()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    try:
        # Redrawn between cases only: a redrawing thread would disturb the timing.
        with Progress(*columns, console=terminal, transient=True, auto_refresh=False) as progress:
            task = progress.add_task(options.benchmark, total=len(cases))
            for case in cases:
                progress.update(task, description=str(case), refresh=True)
                try:
                    for measurement in measure(case):
                        outcome.measurements.append(measurement)
                except WrongResultError as wrong:
                    outcome.refused.append(f"{case}: {wrong}")
                progress.update(task, advance=1, refresh=True)
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        save(options.output, outcome.measurements, environment)
    if outcome.interrupted:
        terminal.print("[yellow]interrupted: what had been measured is kept[/]")
    for message in outcome.refused:
        terminal.print(f"[bold red]no times, wrong results:[/] {message}")
    terminal.print(f"{len(outcome.measurements)} measurements in {options.output}", highlight=False)
    return outcome
