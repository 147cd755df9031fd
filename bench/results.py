"""Results as long-form CSV: one measurement per row, with what it was measured on.

A row is identified by what was measured and on which hardware. Measuring it again
replaces it; rows of other hardware, shapes or providers stay.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from bench.graphics import driver_version
from boe.evaluate.environment import processor_name

RESULTS = Path(__file__).parent / "results"

IDENTITY = ("benchmark", "provider", "mode", "dtype", "config", "metric", "hardware")
VERSIONS = ("torch", "triton", "cuda", "driver", "python")
COLUMNS = (*IDENTITY, "value", "p20", "p80", *VERSIONS, "date", "commit", "note")

Config = Mapping[str, int | str]
Row = dict[str, str]
"""A line of a CSV file by column; files written before a column existed lack it."""


@dataclass(frozen=True)
class Quantiles:
    """Median and spread of repeated measurements; all equal for a single one."""

    p50: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Quantiles:
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        deciles = statistics.quantiles(samples, n=10, method="inclusive")
        return cls(p50=deciles[4], p20=deciles[1], p80=deciles[7])


@dataclass(frozen=True)
class Measurement:
    """One number of one provider. ``value`` is ``None`` where the provider cannot run."""

    benchmark: str
    provider: str
    mode: str
    """forward, backward, forward+backward, ..."""
    dtype: str
    config: Config
    """The shape, e.g. ``{"L": 1024, "A": 64}``."""
    metric: str
    """time_ms, peak_memory_mb or ratio; a ratio's provider reads rival/ours."""
    value: Quantiles | None
    note: str = ""
    """Why there is no value."""


@dataclass(frozen=True)
class Environment:
    """What a result depends on besides the code that it names."""

    hardware: str
    cuda_version: str = ""
    """CUDA's, or ROCm's, as PyTorch was built with it; empty on a CPU, as the driver's."""
    driver_version: str = ""
    torch_version: str = torch.__version__
    triton_version: str = field(default_factory=lambda: _version("triton"))
    python_version: str = field(default_factory=platform.python_version)
    date: str = field(default_factory=lambda: utc_now())
    commit: str = field(default_factory=lambda: commit_of())

    @classmethod
    def of(cls, device: torch.device) -> Environment:
        if device.type != "cuda":
            return cls(hardware_name(device))
        cuda = torch.version.hip or torch.version.cuda or "unknown"
        return cls(hardware_name(device), cuda, driver_version())


def utc_now() -> str:
    """The date as it stands in a file; later ones compare greater."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def hardware_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'s' if threads > 1 else ''}"


def save(
    path: Path,
    measurements: Iterable[Measurement],
    environment: Environment,
    outdated: Callable[[Row], bool] = lambda row: False,
) -> None:
    """Merge measurements into the CSV file at ``path``, which is replaced in one step.

    Args:
        outdated: which rows of the file are to be dropped, measured again or not.
    """
    rows = {_identity(row): row for row in read_rows(path) if not outdated(row)}
    for measurement in measurements:
        row = _as_row(measurement, environment)
        rows[_identity(row)] = row
    write_rows(path, COLUMNS, rows.values())


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Put a CSV file of the rows at ``path``, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", newline="", encoding="utf-8", delete=False
    ) as file:
        try:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            # NamedTemporaryFile makes files that only their owner may read.
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def read_rows(path: Path) -> list[Row]:
    """The lines of a file of results; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def as_measurement(row: Row) -> Measurement:
    """What a line says was measured."""
    value = None
    if row["value"]:
        value = Quantiles(*(float(row[column]) for column in ("value", "p20", "p80")))
    return Measurement(
        row["benchmark"],
        row["provider"],
        row["mode"],
        row["dtype"],
        json.loads(row["config"]),
        row["metric"],
        value,
        row.get("note", ""),
    )


def config_text(config: Config) -> str:
    """A shape as it stands in a file."""
    return json.dumps(dict(config), separators=(",", ":"))


def _as_row(measurement: Measurement, environment: Environment) -> Row:
    value = measurement.value
    return {
        "benchmark": measurement.benchmark,
        "provider": measurement.provider,
        "mode": measurement.mode,
        "dtype": measurement.dtype,
        "config": config_text(measurement.config),
        "metric": measurement.metric,
        "hardware": environment.hardware,
        "value": "" if value is None else f"{value.p50:.6g}",
        "p20": "" if value is None else f"{value.p20:.6g}",
        "p80": "" if value is None else f"{value.p80:.6g}",
        "torch": environment.torch_version,
        "triton": environment.triton_version,
        "cuda": environment.cuda_version,
        "driver": environment.driver_version,
        "python": environment.python_version,
        "date": environment.date,
        "commit": environment.commit,
        "note": measurement.note,
    }


def _identity(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[column] for column in IDENTITY)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def commit_of(repository: Path = Path(__file__).parents[1]) -> str:
    """The commit, marked as dirty if tracked files differ from it: other than the results, which
    the benchmark before this one may just have written."""
    try:
        described = _git(repository, "describe", "--always")
        compared = ("--", ".", ":(exclude)bench/results")
        changed = _git(repository, "status", "--porcelain", "--untracked-files=no", *compared)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{described}-dirty" if changed else described


def _git(repository: Path, *arguments: str) -> str:
    said = subprocess.run(
        ["git", *arguments],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout.strip()
