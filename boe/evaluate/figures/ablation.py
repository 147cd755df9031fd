"""Ablation bars: how much each option gains or loses against the base."""

from __future__ import annotations

from pathlib import Path

from boe.evaluate.ablation import Ablation, AblationRow
from boe.evaluate.figures.style import COLOURS, figure
from boe.evaluate.settings import Setting

_ROW = 0.24
_HEAD = 1.4


def plot_ablation(ablation: Ablation, path: Path) -> None:
    """Bars of the difference to the base, with 95 % intervals; a panel per setting.

    Beside each bar stands the cost, in forwards. Refused variants are left out.

    Raises:
        ModuleNotFoundError: matplotlib is missing (the extra ``plot``).
        ValueError: there is nothing to draw.
    """
    panels: dict[Setting, list[AblationRow]] = {}
    for row in ablation.rows:
        if row.summary is not None:
            panels.setdefault(row.summary.setting, []).append(row)
    if not panels:
        raise ValueError("the ablation has no decoded variant")
    longest = max(len(rows) for rows in panels.values())
    axes_of_options = list(ablation.axes)
    with figure(path, 1, len(panels), (5.4, _HEAD + _ROW * longest)) as (_, axes):
        for axis, (setting, rows) in zip(axes, panels.items(), strict=True):
            for place, row in enumerate(rows):
                assert row.summary is not None
                colour = COLOURS[axes_of_options.index(row.variant.axis) % len(COLOURS)]
                cost = f"{row.summary.flop_equiv:.0f}"
                if row.pair is None:
                    axis.plot(0.0, place, marker="|", markersize=9, color=colour)
                    axis.annotate(f" base, {cost}", (0.0, place), va="center", fontsize=7)
                    continue
                low, high = (100 * bound for bound in row.pair.accuracy_interval)
                gain = 100 * row.pair.accuracy
                axis.barh(place, gain, height=0.7, color=colour, alpha=0.85)
                axis.plot((low, high), (place, place), color="#333333", linewidth=0.9)
                axis.annotate(f"  {cost}", (max(high, 0.0), place), va="center", fontsize=7)
            axis.axvline(0.0, color="#333333", linewidth=0.8)
            axis.set_yticks(
                range(len(rows)),
                [f"{row.variant.axis} = {row.variant.label}" for row in rows],
                fontsize=7,
            )
            axis.set_ylim(len(rows) - 0.5, -0.5)
            axis.grid(axis="y", visible=False)
            axis.set_xlabel(f"points against the base, {setting}\n(at the bar: cost in forwards)")
