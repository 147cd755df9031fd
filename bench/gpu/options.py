"""The command line of ``python -m bench gpu``."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bench
from bench.results import RESULTS, utc_now

CORRECTNESS = ("tests", "sanitizer")
SPEED = ("aims", "sweep")
PARTS = (*CORRECTNESS, *SPEED)
_GROUPS = {"correctness": CORRECTNESS, "speed": SPEED}

# Leaves time to copy the results away where a machine is lent for half an hour.
MINUTES = 24.0


@dataclass(frozen=True)
class Options:
    """What to run, for how long, and where to."""

    output: Path
    parts: tuple[str, ...]
    deadline: float
    """Seconds since the epoch; no case is begun after it."""
    since: str
    """Results from before this date are repeated; empty for none."""
    unverified: bool
    listing: bool
    docs: bool
    cases: str
    """Only cases whose line contains this."""
    commit: str | None


def parse(argv: Sequence[str], *, toy: bool) -> Options:
    """Read the command line.

    Args:
        toy: there is no GPU, and the results are to go to a temporary folder by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench gpu",
        description="Correctness and speed of the kernels on this machine's GPU. What is stored "
        "already for the same sources, device and versions is not repeated. Without a GPU "
        "everything runs at toy sizes.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for DEVICE.csv, .md and .log (default: bench/results; a temporary folder "
        "without a GPU); what bench/results holds for the device is taken over",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help="time to fill, imports included (default: %(default)g)",
    )
    parser.add_argument(
        "--only",
        choices=(*_GROUPS, *PARTS),
        nargs="+",
        default=["correctness", "speed"],
        help="parts of the run; tests that times depend on are run as well",
    )
    parser.add_argument(
        "--cases", default="", metavar="TEXT", help="time only cases whose name contains TEXT"
    )
    parser.add_argument("--again", action="store_true", help="repeat what is stored, too")
    parser.add_argument(
        "--unverified",
        action="store_true",
        help="time ops whose tests fail; the results go to DEVICE-unverified.*",
    )
    parser.add_argument("--commit", help="what is checked out, where git cannot tell")
    parser.add_argument("--list", action="store_true", help="show what is stored and what is not")
    parser.add_argument(
        "--docs", action="store_true", help="write the aims into docs/kernels.md, and end"
    )
    # For a run that goes on in a new process.
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--since", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.minutes <= 0:
        parser.error(f"--minutes must be positive, got {arguments.minutes:g}")
    chosen = {part for name in arguments.only for part in _GROUPS.get(name, (name,))}
    output = arguments.output
    if output is None:
        output = Path(tempfile.mkdtemp(prefix="boe-bench-gpu-")) if toy else RESULTS
    return Options(
        output=output,
        parts=tuple(part for part in PARTS if part in chosen),
        deadline=arguments.deadline or (bench.began or time.time()) + 60 * arguments.minutes,
        since=arguments.since or (utc_now() if arguments.again else ""),
        unverified=arguments.unverified,
        listing=arguments.list,
        docs=arguments.docs,
        cases=arguments.cases,
        commit=arguments.commit,
    )
