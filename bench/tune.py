"""Tiles from measured times: ``python -m bench tune``, on a GPU.

Writes the entries of ``boe_kernels/_attention_tiles.json`` for the architecture at hand, and of
``boe_kernels/soft_embedding/fused_tiles.json`` whether the fused soft write is preferred. A tile
is timed only if each of its binaries compiles without spills and within the shared memory, and
counts only if it runs and its results agree with those of PyTorch's kernels. Times are kept
as they come, so that an interrupted run goes on where it was; the table is written after each
entry.
Afterwards ``python -m bench resources`` should be run under each Triton that is supported.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

import bench
from bench import soft_tiles
from bench.results import hardware_name
from bench.soft_tiles import SoftSubject, described
from bench.terminal import console
from bench.tiles import KERNELS, Role, Subject, call, candidates, fits, only_tile, roles
from boe_kernels._attention_launch import ARCHITECTURES, HEAD_DIMS, TABLE, Architecture, Tile
from boe_kernels._triton import for_device
from boe_kernels.soft_embedding.fused_launch import TABLE as SOFT_TABLE
from boe_kernels.soft_embedding.fused_launch import TILES, FusedTile, write_tiles

# Results differ in the order of sums, and in where P is rounded.
_TOLERANCE = 2e-2

Fit = Callable[[Sequence[tuple[str, Subject, Role, Tile]]], Sequence[bool]]
Measure = Callable[[str, Subject, Role, Tile], float | None]
SoftFit = Callable[[Sequence[tuple[str, SoftSubject, FusedTile]]], Sequence[bool]]
SoftMeasure = Callable[[str, SoftSubject, Role, FusedTile | None], float | None]
"""Without a tile, of the vendor's product."""


class Entry(Protocol):
    """An entry of a table, for which tiles are timed."""

    @property
    def kernel(self) -> str: ...

    @property
    def key(self) -> str: ...


AnyTile = TypeVar("AnyTile", Tile, FusedTile)


class OutOfTime(Exception):
    """The time that a run was given is over."""


class Times:
    """Milliseconds of tiles, ``None`` where a tile is out, in a file of a JSON object per line.

    Args:
        until: seconds since the epoch after which nothing more is timed.
    """

    def __init__(self, path: Path, where: str, until: float = math.inf) -> None:
        self._path, self._where, self._until = path, where, until
        self._known: dict[str, float | None] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        # The last line is not whole if the run that wrote it was killed.
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        for line in whole.splitlines():
            entry = json.loads(line)
            if entry["where"] == where:
                self._known[json.dumps(entry["what"])] = entry["ms"]

    @staticmethod
    def _what(subject: Entry, role: Role, tile: AnyTile) -> list[Any]:
        return [subject.kernel, subject.key, role.name, list(astuple(tile))]

    def missing(self, subject: Entry, role: Role, tiles: Sequence[AnyTile]) -> list[AnyTile]:
        known = self._known
        return [t for t in tiles if json.dumps(self._what(subject, role, t)) not in known]

    def of(self, subject: Entry, role: Role, tile: AnyTile) -> float | None:
        return self._known[json.dumps(self._what(subject, role, tile))]

    def add(self, subject: Entry, role: Role, tile: AnyTile, ms: float | None) -> None:
        what = self._what(subject, role, tile)
        self._known[json.dumps(what)] = ms
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"where": self._where, "what": what, "ms": ms}) + "\n")

    def take(
        self,
        subject: Entry,
        role: Role,
        tile: AnyTile,
        measure: Callable[[], float | None] | None,
    ) -> None:
        """Keep what ``measure`` says; without it, or where it fails, the tile is out.

        A failure that has taken the device away is kept before it ends the run: the next run
        goes on behind this tile.

        Raises:
            OutOfTime: it is too late to time anything.
        """
        if time.time() > self._until:
            raise OutOfTime
        try:
            ms = measure() if measure is not None else None
        except Exception as error:
            console().print(f"{subject.kernel}, {subject.key}, {tile}: {error}", markup=False)
            self.add(subject, role, tile, None)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        else:
            self.add(subject, role, tile, ms)


# --- choosing -----------------------------------------------------------------------


def tune_entry(
    architecture: str, subject: Subject, times: Times, fit: Fit, measure: Measure
) -> list[Tile]:
    """The quickest tile of each role, the same one not twice; none of a role that none fits."""
    chosen: list[Tile] = []
    for role in roles(subject):
        tiles = candidates(subject, role, ARCHITECTURES[architecture])
        missing = times.missing(subject, role, tiles)
        answers = fit([(architecture, subject, role, tile) for tile in missing])
        for tile, fitting in zip(missing, answers, strict=True):
            attempt = partial(measure, architecture, subject, role, tile)
            times.take(subject, role, tile, attempt if fitting else None)
        timed = [(ms, tile) for tile in tiles if (ms := times.of(subject, role, tile)) is not None]
        if timed:
            _, best = min(timed, key=lambda each: each[0])
            chosen += [best] if best not in chosen else []
    return chosen


def tune_soft_write(
    architecture: str, subject: SoftSubject, times: Times, fit: SoftFit, measure: SoftMeasure
) -> FusedTile | None:
    """The quickest tile of the fused soft write, and whether it is preferred; or none fits."""
    tiles, (first, *others) = soft_tiles.candidates(), soft_tiles.roles()
    missing = times.missing(subject, first, tiles)
    answers = fit([(architecture, subject, tile) for tile in missing])
    for tile, fitting in zip(missing, answers, strict=True):
        attempt = partial(measure, architecture, subject, first, tile)
        times.take(subject, first, tile, attempt if fitting else None)
    for role in others:
        for tile in times.missing(subject, role, tiles):
            out = times.of(subject, first, tile) is None
            attempt = partial(measure, architecture, subject, role, tile)
            times.take(subject, role, tile, None if out else attempt)
    timed: dict[FusedTile, tuple[float, ...]] = {}
    for tile in tiles:
        by_role = [times.of(subject, role, tile) for role in (first, *others)]
        right = tuple(ms for ms in by_role if ms is not None)
        if len(right) == len(by_role):
            timed[tile] = right
    # Not kept: a new version of the vendor's library is another rival.
    rival = [measure(architecture, subject, role, None) for role in (first, *others)]
    return soft_tiles.choose(timed, rival)


@dataclass(frozen=True)
class Table:
    """The file of attention tiles."""

    path: Path

    def write(self, architecture: str, subject: Subject, tiles: Sequence[Tile]) -> None:
        """Replace an entry, in the file and for the rest of this run."""
        data = json.loads(self.path.read_text(encoding="utf-8"))
        entries = data[architecture]["tiles"][subject.kernel]
        entries[subject.key] = [list(astuple(tile)) for tile in tiles]
        fresh = self.path.with_suffix(".new")
        fresh.write_text(table_text(data), encoding="utf-8")
        fresh.replace(self.path)
        ARCHITECTURES[architecture] = Architecture.from_json(data[architecture])


def table_text(data: dict[str, Any]) -> str:
    """The table as JSON, one line per entry."""

    def block(members: Sequence[str], depth: int) -> str:
        inside = ",\n".join(" " * (depth + 1) + member for member in members)
        return "{\n" + inside + "\n" + " " * depth + "}"

    architectures = []
    for name, facts in data.items():
        kernels = []
        for kernel, entries in facts["tiles"].items():
            lines = [f"{json.dumps(key)}: {json.dumps(tiles)}" for key, tiles in entries.items()]
            kernels.append(f"{json.dumps(kernel)}: {block(lines, 3)}")
        count = f'"multiprocessors": {facts["multiprocessors"]}'
        tiles = f'"tiles": {block(kernels, 2)}'
        architectures.append(f"{json.dumps(name)}: {block([count, tiles], 1)}")
    return block(architectures, 0) + "\n"


# --- on the GPU ---------------------------------------------------------------------


def measured(architecture: str, subject: Subject, role: Role, tile: Tile) -> float | None:
    """Milliseconds, the geometric mean over the role's shapes; ``None``: a wrong result."""
    from triton.testing import do_bench

    device, logs = torch.device("cuda"), 0.0
    for shape in role.shapes:
        with only_tile(architecture, subject, tile):
            run = call(subject, shape, device)
            expected = call(subject, shape, device, path="library")()
            if not agree(run(), expected):
                return None
            logs += math.log(do_bench(run, warmup=5, rep=40, return_mode="median"))
    return math.exp(logs / len(role.shapes))


def agree(results: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether a tile's results are those of PyTorch's kernels, up to rounding."""
    for a, b in zip(results, expected, strict=True):
        error = (a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-20)
        # NaN is no agreement either.
        if not error <= _TOLERANCE:
            return False
    return True


def tables_in(folder: Path | None) -> tuple[Path, Path]:
    """The tables of attention and of the soft write: the package's, or copies in ``folder``,
    which an earlier run may have begun."""
    if folder is None:
        return TABLE, SOFT_TABLE
    folder.mkdir(parents=True, exist_ok=True)
    for table in (TABLE, SOFT_TABLE):
        if not (folder / table.name).exists():
            shutil.copyfile(table, folder / table.name)
    return folder / TABLE.name, folder / SOFT_TABLE.name


def _processors() -> int:
    """Those that this process may use, which in a container are not all that there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _ending_in_time() -> Iterator[None]:
    try:
        yield
    except OutOfTime:
        console().print("out of time: the same command goes on with the times that are kept")


def main(argv: Sequence[str]) -> None:
    """Tune what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench tune", description=__doc__)
    kernels = (*KERNELS, SoftSubject.kernel)
    parser.add_argument("--kernel", choices=kernels, nargs="+", default=kernels)
    parser.add_argument("--width", choices=HEAD_DIMS, type=int, nargs="+", default=HEAD_DIMS[:2])
    parser.add_argument("--bits", choices=(16, 32), type=int, nargs="+", default=(16,))
    parser.add_argument("--times", type=Path, help="where times are kept")
    parser.add_argument("--tables", type=Path, help="where tables are written, if not in place")
    parser.add_argument("--jobs", type=int, default=_processors(), help="compiling processes")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="time to fill; again to go on",
    )
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("bench tune needs a GPU: it chooses tiles by their measured times")
    device = torch.device("cuda")
    name = hardware_name(device)
    here = for_device({each: each for each in ARCHITECTURES}, device)
    path = options.times or Path("bench/results") / f"tiles-{name.replace(' ', '-')}.jsonl"
    attention_table, soft_table = tables_in(options.tables)
    import triton

    until = (bench.began or time.time()) + 60 * options.minutes
    times = Times(path, f"{name}, Triton {triton.__version__}", until)
    with (
        _ending_in_time(),
        ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool,
    ):

        def fit(wanted: Sequence[tuple[str, Subject, Role, Tile]]) -> Sequence[bool]:
            return list(pool.map(fits, *zip(*wanted, strict=True))) if wanted else []

        attention = [kernel for kernel in options.kernel if kernel in KERNELS]
        for kernel, bits, width, hidden in product(
            attention, options.bits, options.width, (False, True)
        ):
            subject = Subject(kernel, bits, width, hidden)
            tiles = tune_entry(here, subject, times, fit, measured)
            listed = ", ".join(str(astuple(tile)) for tile in tiles)
            console().print(
                f"{here}, {kernel}, {subject.key}: {listed or 'none fits, not changed'}"
            )
            if tiles:
                Table(attention_table).write(here, subject, tiles)
        if SoftSubject.kernel in options.kernel:

            def fit_soft(wanted: Sequence[tuple[str, SoftSubject, FusedTile]]) -> Sequence[bool]:
                columns = zip(*wanted, strict=True)
                return list(pool.map(soft_tiles.fits, *columns)) if wanted else []

            measure = partial(soft_tiles.measured, agree=agree)
            for entry in map(SoftSubject, options.bits):
                best = tune_soft_write(here, entry, times, fit_soft, measure)
                console().print(f"{here}, {entry.kernel}, {entry.key}: {described(best)}")
                if best is not None:
                    TILES[here][entry.key] = best
                    write_tiles(TILES, soft_table)


if __name__ == "__main__":
    main(sys.argv[1:])
