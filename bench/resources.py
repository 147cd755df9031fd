"""What every Triton kernel asks of the hardware: ``python -m bench resources``.

Compiles each kernel in every committed configuration, for every architecture that has
launch parameters, and prints registers, spills, shared memory and the occupancy that these
allow. Needs no GPU. Status 1 if a binary spills, wants more shared memory than there is, or
does not compile.

All of them take several minutes. Figures are kept as they come, under what the binary is made
from, so that an interrupted run goes on where it was and another one compiles what has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.binaries import Binary, Wanted, packages_with_kernels, wanted_binaries
from bench.binary_record import FOLDER, docs_section, read_record, write_record
from bench.kernels_doc import DOCS, put_section
from bench.terminal import console
from bench.units import TARGETS, UNITS


class Kept:
    """Figures of binaries, by their keys, in a file of one JSON object per line."""

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self._path = path
        self._figures: dict[str, Binary] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "" if fresh or not path.exists() else path.read_text(encoding="utf-8")
        # The last line is not whole if the run that wrote it was killed.
        whole = text[: text.rfind("\n") + 1]
        if fresh or whole != text:
            path.write_text(whole, encoding="utf-8")
        for line in whole.splitlines():
            entry = json.loads(line)
            self._figures[entry["key"]] = Binary(**entry["binary"])

    def get(self, wanted: Wanted) -> Binary | None:
        """The figures under the key, named as they are wanted now."""
        kept = self._figures.get(wanted.key)
        if kept is None:
            return None
        names = ("op", "case", "kernel", "architecture", "options")
        return replace(kept, **{name: getattr(wanted, name) for name in names})

    def add(self, wanted: Wanted, binary: Binary) -> None:
        """Keep the figures, unless there are none: what did not compile is tried again."""
        if not binary.error:
            self._figures[wanted.key] = binary
            text = json.dumps({"key": wanted.key, "binary": asdict(binary)})
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")


def compile_all(
    wanted: Sequence[Wanted], jobs: int
) -> Generator[tuple[Wanted, Binary], None, None]:
    """The binaries as they are finished, in ``jobs`` processes."""
    if jobs == 1:
        for each in wanted:
            yield each, each.compile()
        return
    # Spawned, because a fork would share locks with PyTorch's threads.
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        futures: dict[Future[Binary], Wanted] = {
            pool.submit(Wanted.compile, each): each for each in wanted
        }
        for done in as_completed(futures):
            yield futures[done], done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def print_resources(binaries: Sequence[Binary]) -> None:
    """One table per architecture, one line per binary."""
    for architecture in dict.fromkeys(binary.architecture for binary in binaries):
        table = Table(title=architecture, title_justify="left", header_style="bold")
        for heading in ("op", "kernel", "case"):
            table.add_column(heading, overflow="fold")
        for heading in ("warps", "registers", "spilled B", "shared B", "occupancy"):
            table.add_column(heading, justify="right")
        for binary in binaries:
            if binary.architecture != architecture:
                continue
            figures = ("–",) * 5
            if not binary.error:
                figures = (
                    str(binary.warps),
                    str(binary.registers),
                    f"[bold red]{binary.spilled}[/]" if binary.spilled else "0",
                    str(binary.shared),
                    f"{binary.occupancy:.0%}",
                )
            table.add_row(binary.op, binary.kernel, binary.case, *figures)
        console().print(table)
    for binary in binaries:
        if binary.complaint:
            console().print(describe(binary), style="red", markup=False)


def describe(binary: Binary) -> str:
    return (
        f"{binary.kernel} ({binary.case}, {binary.options}) on {binary.architecture} "
        f"{binary.complaint}"
    )


def gather(
    packages: Sequence[str], architectures: Sequence[str], sample: bool, jobs: int, kept: Kept
) -> tuple[list[Binary], int]:
    """The binaries of the ops by op, then by architecture, with a progress bar.

    What one op shares with another is listed once. Ctrl-C ends it early.

    Returns:
        The binaries, and how many are missing.
    """
    wanted: dict[str, Wanted] = {}
    failed: list[Binary] = []
    for package, architecture in product(packages, architectures):
        for each in wanted_binaries(package, architecture, sample):
            if isinstance(each, Binary):
                failed.append(each)
            else:
                wanted.setdefault(each.key, each)
    found = {key: known for key, each in wanted.items() if (known := kept.get(each))}
    missing = [each for key, each in wanted.items() if key not in found]
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[last]}"), console=console()) as progress:
        task = progress.add_task("binaries", total=len(wanted), completed=len(found), last="")
        try:
            with closing(compile_all(missing, min(jobs, len(missing) or 1))) as compiled:
                for each, binary in compiled:
                    kept.add(each, binary)
                    found[each.key] = binary
                    progress.update(task, advance=1, last=f"{each.architecture} {each.kernel}")
                    if binary.complaint:
                        progress.console.print(describe(binary), style="red", markup=False)
        except KeyboardInterrupt:
            progress.console.print("Interrupted: what is done is kept.")
    ordered = [found[key] for key in wanted if key in found]
    return [*ordered, *failed], len(wanted) - len(found)


def main(argv: Sequence[str]) -> None:
    """Compile what the command line asks for and print its table."""
    packages = packages_with_kernels()
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "boe"
    parser = argparse.ArgumentParser(prog="python -m bench resources", description=__doc__)
    parser.add_argument("--op", choices=packages, nargs="+", default=packages)
    parser.add_argument("--architecture", choices=tuple(UNITS), nargs="+", default=tuple(TARGETS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument("--sample", action="store_true", help="few cases of every kernel")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument(
        "--record",
        action="store_true",
        help="of all ops: also write the figures to bench/results/binaries, and "
        "what spills to docs/kernels.md",
    )
    parser.add_argument(
        "--kept",
        type=Path,
        default=cache / "resources.jsonl",
        help="where figures are kept from run to run (default: %(default)s)",
    )
    parser.add_argument("--fresh", action="store_true", help="forget the kept figures first")
    options = parser.parse_args(argv)
    whole = set(options.op) == set(packages) and set(options.architecture) <= set(TARGETS)
    if options.record and (options.sample or not whole):
        parser.error(
            f"--record is of all binaries of one or more of {', '.join(TARGETS)}: "
            "it goes with --architecture, and neither with --op nor with --sample"
        )
    kept = Kept(options.kept, options.fresh)
    binaries, missing = gather(options.op, options.architecture, options.sample, options.jobs, kept)
    if options.json:
        options.json.write_text(json.dumps([asdict(binary) for binary in binaries], indent=1))
    print_resources(binaries)
    if missing:
        console().print(f"{missing} binaries were not compiled; the same command goes on.")
        raise SystemExit(130)
    if options.record:
        write_record(FOLDER, version("triton"), binaries)
        put_section(DOCS, docs_section(read_record()))
    if any(binary.complaint for binary in binaries):
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
