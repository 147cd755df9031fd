"""Accuracy against each cost, with the frontier; and how uncertainty falls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boe.evaluate.comparison import Comparison, Summary, curve_name
from boe.evaluate.figures.style import figure, looks
from boe.evaluate.pareto import pareto_frontier
from boe.evaluate.record import COSTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "nfe_forward": "forwards per item",
    "n_backward": "backward passes per item",
    "flop_equiv": "cost in forwards per item",
    "seconds": "seconds per item",
}
_LOGARITHMIC_FROM = 8.0


def plot_comparison(comparison: Comparison, path: Path, costs: Sequence[str] = COSTS) -> None:
    """Draw accuracy, with 95 % intervals, against every cost that anybody had.

    Points that no other beats are ringed and joined. The suffix of ``path`` sets the format.

    Raises:
        ModuleNotFoundError: matplotlib is missing (the extra ``plot``).
    """
    summaries = comparison.summaries
    curves: dict[str, list[Summary]] = {}
    for summary in summaries:
        curves.setdefault(curve_name(summary.curve, summary.setting), []).append(summary)
    shown = [cost for cost in costs if any(getattr(s, cost) for s in summaries)]
    with figure(path, 1, len(shown), (4.0, 3.6)) as (drawn, axes):
        for axis, cost in zip(axes, shown, strict=True):
            for look, (name, members) in zip(looks(len(curves)), curves.items(), strict=True):
                _draw_curve(axis, name, members, cost, look)
            _draw_frontier(axis, summaries, cost)
            set_scale(axis, [getattr(s, cost) for s in summaries])
            axis.set_xlabel(LABELS[cost])
            axis.set_ylim(0, 1)
        axes[0].set_ylabel("share of right answers")
        handles, labels = axes[-1].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def plot_residual_entropy(comparison: Comparison, path: Path) -> None:
    """Draw the remaining entropy of the masks against steps and against cost.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: the comparison has no such curves.
    """
    if not comparison.residual:
        raise ValueError("the comparison has no residual-entropy curves: none were traced")
    settings = list(dict.fromkeys(curve.setting for curve in comparison.residual))
    samplers = list(dict.fromkeys(curve.sampler for curve in comparison.residual))
    kinds = dict(zip(samplers, looks(len(samplers)), strict=True))
    with figure(path, len(settings), 2, (4.6, 3.0)) as (drawn, axes):
        for row, setting in enumerate(settings):
            by_step, by_cost = axes[2 * row], axes[2 * row + 1]
            for curve in comparison.residual:
                if curve.setting != setting:
                    continue
                look = {**kinds[curve.sampler], "markersize": 3}
                steps = range(len(curve.entropy))
                by_step.plot(steps, curve.entropy, label=curve.sampler, **look)
                by_cost.plot(curve.cost, curve.entropy, label=curve.sampler, **look)
            by_step.set_ylabel(f"nats left in the masks\n({setting})")
            by_step.set_xlabel("steps taken")
            by_cost.set_xlabel("cost spent, in forwards")
            for axis in (by_step, by_cost):
                axis.set_ylim(bottom=0)
        handles, labels = axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _draw_curve(
    axis: Axes, name: str, members: Sequence[Summary], cost: str, look: dict[str, Any]
) -> None:
    points = sorted((getattr(s, cost), s.accuracy, *s.interval) for s in members)
    x, y, low, high = zip(*points, strict=True)
    below = [a - b for a, b in zip(y, low, strict=True)]
    above = [b - a for a, b in zip(y, high, strict=True)]
    axis.errorbar(
        x,
        y,
        yerr=(below, above),
        label=name,
        capsize=2,
        linewidth=1.2,
        elinewidth=0.6,
        markersize=4,
        **look,
    )


def _draw_frontier(axis: Axes, summaries: Sequence[Summary], cost: str) -> None:
    points = [(getattr(s, cost), s.accuracy) for s in summaries]
    best = [points[k] for k in pareto_frontier(points)]
    x, y = zip(*best, strict=True)
    axis.plot(
        x,
        y,
        label="frontier",
        color="#555555",
        linewidth=5,
        alpha=0.25,
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgewidth=1.5,
        zorder=0,
    )


def set_scale(axis: Axes, values: Sequence[float]) -> None:
    """Logarithmic where costs span a large range; zero then stays out of the picture."""
    if min(values) > 0 and max(values) / min(values) >= _LOGARITHMIC_FROM:
        from matplotlib.ticker import LogLocator, ScalarFormatter

        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(LogLocator(subs=()))
