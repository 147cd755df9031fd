"""Where a sampler stands against the best of its rivals, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from boe.evaluate.comparison import AXES, Comparison
from boe.evaluate.figures.style import COLOURS, figure
from boe.evaluate.standing import Best

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 0.21
_HEAD = 1.1
_TITLES = dict(zip(AXES, ("at equal cost in forwards", "at equal wall time"), strict=True))


def plot_standing(comparisons: Sequence[Comparison], path: Path) -> None:
    """Points ahead of the best rival at equal cost, with 95 % intervals; a panel per axis.

    A row per task and setting, from the dearest.

    Raises:
        ModuleNotFoundError: matplotlib is missing (the extra ``plot``).
        ValueError: a comparison has no standing.
    """
    rows = []
    for comparison in comparisons:
        if not comparison.standing:
            raise ValueError(f"the comparison on {comparison.study.task} has no standing")
        rows += [(comparison.study.task, standing) for standing in comparison.standing]
    with figure(path, 1, len(AXES), (5.2, _HEAD + _ROW * len(rows))) as (_, panels):
        for panel, axis in zip(panels, AXES, strict=True):
            for place, (_, standing) in enumerate(rows):
                _draw(panel, place, standing.best[axis])
            place = 0
            for _, group in groupby(rows, key=lambda row: row[0]):
                place += len(list(group))
                panel.axhline(place - 0.5, color="#bbbbbb", linewidth=0.6)
            panel.axvline(0.0, color="#333333", linewidth=0.8)
            panel.set_ylim(len(rows) - 0.5, -0.5)
            panel.grid(axis="y", visible=False)
            labels = [f"{task}, {standing.setting}" for task, standing in rows]
            panel.set_yticks(range(len(rows)), labels, fontsize=7)
            panel.set_xlabel(f"points ahead of the best rival\n{_TITLES[axis]}")


def _draw(panel: Axes, place: int, best: Best | None) -> None:
    if best is None:
        panel.annotate("no rival is so cheap", (0.0, place), va="center", fontsize=6, color="#777")
        return
    low, high = (100 * bound for bound in best.interval)
    # Blue where the interval excludes that a rival is as good, orange where a rival is better.
    colour = COLOURS[0] if low > 0 else COLOURS[1] if high < 0 else "#333333"
    panel.plot((low, high), (place, place), color=colour, linewidth=1.2)
    panel.plot(100 * best.ahead, place, marker="o", markersize=4, color=colour)
