"""What was written against what it cost, where texts are measured on the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boe.evaluate.comparison import Comparison, curve_name
from boe.evaluate.figures.costs import LABELS, set_scale
from boe.evaluate.figures.style import figure, looks
from boe.evaluate.text_quality import TextQuality

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Interval = tuple[float, float]
_Measure = Callable[[TextQuality], tuple[float, Interval | None]]

_MEASURES: dict[str, _Measure] = {
    "perplexity under the scorer": lambda q: (q.perplexity, q.perplexity_interval),
    "unigram entropy, nats": lambda q: (q.unigram_entropy, q.unigram_entropy_interval),
    "MAUVE": lambda q: (0.0 if q.mauve is None else q.mauve, None),
}


def plot_texts(comparison: Comparison, path: Path) -> None:
    """Draw perplexity, unigram entropy and MAUVE against cost in forwards, a line per curve.

    Real text is a dashed line across: what can be hoped for. There is no frontier, since a
    perplexity says nothing without the entropy beside it. Bars are 95 % intervals.

    Raises:
        ModuleNotFoundError: matplotlib is missing (the extra ``plot``).
        ValueError: no texts were measured.
    """
    results = comparison.text
    if results is None:
        raise ValueError(f"task {comparison.study.task} writes no prose that could be measured")
    summaries = {(s.sampler, s.setting): s for s in comparison.summaries}
    curves: dict[str, list[tuple[float, TextQuality]]] = {}
    for row in results.rows:
        summary = summaries[row.sampler, row.setting]
        name = curve_name(summary.curve, row.setting)
        curves.setdefault(name, []).append((summary.flop_equiv, row.quality))
    shown = dict(_MEASURES)
    if results.real.mauve is None:
        del shown["MAUVE"]
    with figure(path, 1, len(shown), (4.0, 3.6)) as (drawn, axes):
        for axis, (label, measure) in zip(axes, shown.items(), strict=True):
            for look, (name, points) in zip(looks(len(curves)), curves.items(), strict=True):
                _draw_curve(axis, name, points, measure, look)
            real, _ = measure(results.real)
            axis.axhline(real, color="#555555", linestyle=(0, (5, 3)), label="real text")
            set_scale(axis, [cost for points in curves.values() for cost, _ in points])
            axis.set_xlabel(LABELS["flop_equiv"])
            axis.set_ylabel(label)
        axes[0].set_yscale("log")
        handles, labels = axes[-1].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _draw_curve(
    axis: Axes,
    name: str,
    points: Sequence[tuple[float, TextQuality]],
    measure: _Measure,
    look: dict[str, Any],
) -> None:
    ordered = sorted(points, key=lambda point: point[0])
    x = [cost for cost, _ in ordered]
    values = [measure(quality) for _, quality in ordered]
    y = [value for value, _ in values]
    look = {**look, "linewidth": 1.2, "markersize": 4}
    bars = [(value - i[0], i[1] - value) for value, i in values if i is not None]
    if bars:
        axis.errorbar(x, y, yerr=list(zip(*bars, strict=True)), label=name, elinewidth=0.6, **look)
    else:
        axis.plot(x, y, label=name, **look)
