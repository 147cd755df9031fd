"""What every Triton kernel asks of the hardware: ``python -m bench.resources``.

Compiles each kernel in every committed configuration, for every architecture that has
launch parameters, and prints registers, spills, shared memory and the occupancy that these
allow. Needs no GPU. Status 1 if a binary spills, wants more shared memory than there is, or
does not compile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from multiprocessing import get_context
from pathlib import Path

from rich.table import Table

from bench.binaries import TARGETS, Binary, compile_package, packages_with_kernels
from bench.terminal import console


def compile_all(
    packages: Sequence[str], architectures: Sequence[str], jobs: int = 1, sample: bool = False
) -> list[Binary]:
    """Every binary of the ops, or a sample of them, by op, then by architecture."""
    wanted = list(product(packages, architectures, (sample,)))
    if jobs == 1:
        found = [compile_package(*each) for each in wanted]
    else:
        # Spawned, because a fork would share locks with PyTorch's threads.
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(compile_package, *zip(*wanted, strict=True)))
    return [binary for each in found for binary in each]


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
            console().print(
                f"{binary.kernel} ({binary.case}, {binary.options}) on {binary.architecture} "
                f"{binary.complaint}",
                style="red",
                markup=False,
            )


def main(argv: Sequence[str]) -> None:
    """Compile what the command line asks for and print its table."""
    packages = packages_with_kernels()
    parser = argparse.ArgumentParser(prog="python -m bench resources", description=__doc__)
    parser.add_argument("--op", choices=packages, nargs="+", default=packages)
    parser.add_argument("--architecture", choices=tuple(TARGETS), nargs="+", default=tuple(TARGETS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument("--sample", action="store_true", help="only what the tests compile")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(argv)
    binaries = compile_all(options.op, options.architecture, options.jobs, options.sample)
    if options.json:
        options.json.write_text(json.dumps([asdict(binary) for binary in binaries], indent=1))
    print_resources(binaries)
    if any(binary.complaint for binary in binaries):
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
