"""What a run has stored: so that a run that was cut off goes on where it stopped.

A case's rows are written together, in one step, with a row of the harness that says how
long the case took: its presence means that the case is complete. The column ``commit`` of a
GPU's results ends in a digest of the sources that the case depends on. A case is done if it
is complete for this hardware, these versions of PyTorch and Triton and these sources, so
that a change of one kernel makes its own results stale and leaves the others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from bench.results import (
    Config,
    Environment,
    Measurement,
    Quantiles,
    Row,
    as_measurement,
    config_text,
    read_rows,
    save,
)

ROOT = Path(__file__).parents[2]
HARNESS = "harness"
_TOOK = "wall_s"
_SHARED = (
    "boe_kernels/*.py",
    "boe_kernels/*.json",
    "bench/timing.py",
    "bench/gpu/benchmark.py",
    "bench/gpu/launches.py",
    "bench/gpu/roofline.py",
)


def file_stem(hardware: str) -> str:
    """The name of a device's files, e.g. ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")


@cache
def digest(sources: Sequence[str]) -> str:
    """Eight characters that change with any of the files, or files below the folders."""
    found: set[Path] = set()
    for source in (*sources, *_SHARED):
        path = ROOT / source
        below = (*path.rglob("*.py"), *path.rglob("*.json"))
        found |= set(below) if path.is_dir() else set(ROOT.glob(source))
    content = hashlib.sha256()
    for path in sorted(found):
        content.update(path.relative_to(ROOT).as_posix().encode())
        content.update(path.read_bytes())
    return content.hexdigest()[:8]


@dataclass(frozen=True)
class Key:
    """A case, and the sources that its results depend on."""

    benchmark: str
    dtype: str
    config: Config
    sources: tuple[str, ...]

    def is_of(self, row: Row) -> bool:
        """Whether a stored row belongs to this case, measured on whatever and whenever."""
        return (row["benchmark"], row["dtype"], row["config"]) == (
            self.benchmark,
            self.dtype,
            config_text(self.config),
        )


class Store:
    """The file of results of one device."""

    def __init__(self, folder: Path, stem: str, environment: Environment, since: str = "") -> None:
        """Read what is there.

        Args:
            since: results from before this date (as in the column) do not count as done.
        """
        self.environment = environment
        self.since = since
        self.folder = folder
        self.stem = stem
        self._rows = read_rows(self.csv)

    @property
    def csv(self) -> Path:
        return self.folder / f"{self.stem}.csv"

    @property
    def summary(self) -> Path:
        return self.folder / f"{self.stem}.md"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.stem}.log"

    @property
    def measurements(self) -> list[Measurement]:
        return [as_measurement(row) for row in self._rows if self._is_here(row)]

    @property
    def commits(self) -> list[str]:
        """What was checked out when the rows were measured, first seen first."""
        rows = (row for row in self._rows if self._is_here(row))
        return list(dict.fromkeys(row["commit"].split("+")[0] for row in rows))

    def seconds(self, key: Key) -> float | None:
        """How long the case took, if it is done; its rows may be older than this run."""
        return next(
            (
                float(row["value"])
                for row in self._rows
                if row["metric"] == _TOOK and key.is_of(row) and self._is_current(row, key)
            ),
            None,
        )

    def of(self, key: Key) -> list[Measurement]:
        """The rows of a case that is done."""
        return [
            as_measurement(row)
            for row in self._rows
            if key.is_of(row) and self._is_current(row, key)
        ]

    def keep(self, key: Key, measurements: Iterable[Measurement], seconds: float | None) -> None:
        """Store a case, in place of whatever was stored of it for this device.

        Args:
            seconds: how long it took; ``None`` if it did not get to its end.
        """
        done = []
        if seconds is not None:
            took = Quantiles.of([seconds])
            done = [Measurement(key.benchmark, HARNESS, "", key.dtype, key.config, _TOOK, took)]
        environment = replace(
            self.environment, commit=f"{self.environment.commit}+{digest(key.sources)}"
        )
        save(
            self.csv,
            [*measurements, *done],
            environment,
            outdated=lambda row: key.is_of(row) and self._is_here(row),
        )
        self._rows = read_rows(self.csv)

    def _is_here(self, row: Row) -> bool:
        return row["hardware"] == self.environment.hardware

    def _is_current(self, row: Row, key: Key) -> bool:
        here = self.environment
        return (
            self._is_here(row)
            and (row["torch"], row["triton"]) == (here.torch_version, here.triton_version)
            and row["commit"].endswith(f"+{digest(key.sources)}")
            and row["date"] >= self.since
        )
