"""Where a rival was quicker than ours: read off the results, for every report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table as Printed

from bench.report import shape_text
from bench.results import Measurement, as_measurement, read_rows
from bench.terminal import console
from boe.evaluate.tables import Table

OURS = "ours"
NOT_RIVALS = ("roofline", "harness", "ours_by_hand")
"""Floors, bookkeeping, and another way to call ours."""

CLEAR = 0.95

Shape = tuple[str, str, str, str]
"""Benchmark, mode, dtype, and the shape in words."""


@dataclass(frozen=True)
class Loss:
    """A shape and mode at which something took less time than ours, by medians.

    Attributes:
        ratio: the quickest rival's time over ours; below 1.
    """

    benchmark: str
    mode: str
    dtype: str
    shape: str
    rival: str
    ratio: float

    @property
    def is_clear(self) -> bool:
        """More than what may be noise."""
        return self.ratio < CLEAR


def losses(measurements: Iterable[Measurement]) -> tuple[list[Loss], int]:
    """The losses, the worst first, and at how many shapes and modes ours was timed at all."""
    times: dict[Shape, dict[str, float]] = {}
    for m in measurements:
        if m.metric == "time_ms" and m.value is not None and m.provider not in NOT_RIVALS:
            shape = (m.benchmark, m.mode, m.dtype, shape_text(m.config))
            times.setdefault(shape, {})[m.provider] = m.value.p50
    contested = {shape: found for shape, found in times.items() if OURS in found and len(found) > 1}
    found = []
    for shape, by_provider in contested.items():
        ours = by_provider[OURS]
        rivals = ((time, name) for name, time in by_provider.items() if name != OURS)
        time, rival = min(rivals)
        if time < ours:
            found.append(Loss(*shape, rival, time / ours))
    return sorted(found, key=lambda loss: loss.ratio), len(contested)


def losses_section(measurements: Sequence[Measurement]) -> list[str]:
    """In Markdown: how many there are, and a line for each that is more than the noise."""
    found, contested = losses(measurements)
    rows = tuple(
        (loss.benchmark, loss.mode, loss.dtype, loss.shape, loss.rival, f"{loss.ratio:.2f}×")
        for loss in found
        if loss.is_clear
    )
    headings = ("benchmark", "mode", "dtype", "shape", "quickest rival", "rival / ours")
    return _section(found, contested, Table(headings, rows, labels=5))


def losses_on_cpu(results: Path) -> str:
    """The committed results of a CPU, with a line for each rival and mode."""
    files = (results / f"{name}-cpu.csv" for name in ("attention", "entropy"))
    found, contested = losses(as_measurement(row) for path in files for row in read_rows(path))
    groups: dict[tuple[str, str, str], list[Loss]] = {}
    for loss in found:
        if loss.is_clear:
            groups.setdefault((loss.benchmark, loss.mode, loss.rival), []).append(loss)
    rows = tuple(
        (*group, str(len(members)), f"{members[0].ratio:.2f}×", f"{worst.dtype} {worst.shape}")
        for group, members in sorted(groups.items())
        for worst in members[:1]
    )
    headings = ("benchmark", "mode", "quickest rival", "shapes", "at worst, rival / ours", "there")
    return "\n".join(_section(found, contested, Table(headings, rows, labels=3)))


def _section(found: Sequence[Loss], contested: int, table: Table) -> list[str]:
    if not contested:
        return ["Nothing was timed beside a rival."]
    clear = sum(loss.is_clear for loss in found)
    lead = (
        f"At {clear} of {contested} shapes and modes a rival took, by medians, less than "
        f"{CLEAR:.0%} of our time; at {len(found) - clear} more it took less, but not by as much."
    )
    return [lead, "", *table.as_markdown().splitlines()] if clear else [lead]


def print_losses(measurements: Sequence[Measurement]) -> None:
    """The same for the terminal."""
    found, contested = losses(measurements)
    if not contested:
        return
    found = [loss for loss in found if loss.is_clear]
    console().print(
        f"A rival clearly quicker than ours: {len(found)} of {contested} shapes and modes"
    )
    if not found:
        return
    table = Printed(header_style="bold")
    for heading in ("mode", "dtype", "shape", "rival", "rival / ours"):
        table.add_column(heading)
    for loss in found:
        table.add_row(loss.mode, loss.dtype, loss.shape, loss.rival, f"{loss.ratio:.2f}×")
    console().print(table)
