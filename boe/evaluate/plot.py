"""Accuracy against each cost axis."""

from __future__ import annotations

from pathlib import Path

from boe.evaluate.comparison import COSTS, Comparison

_LABELS = {
    "nfe_forward": "forwards per item",
    "n_backward": "backward passes per item",
    "flop_equiv": "cost in forwards per item",
    "seconds": "seconds per item",
}


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Draw accuracy, with 95 % intervals, against every cost; the suffix sets the format.

    Raises:
        ModuleNotFoundError: matplotlib is missing (the extra ``plot``).
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plots need matplotlib: pip install 'boe-kernels[plot]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    summaries = comparison.summaries()
    samplers = list(dict.fromkeys(summary.sampler for summary in summaries))
    axes_shown = [cost for cost in COSTS if any(getattr(s, cost) for s in summaries)]
    figure, axes = pyplot.subplots(
        1, len(axes_shown), figsize=(4.2 * len(axes_shown), 3.8), sharey=True, squeeze=False
    )
    for axis, cost in zip(axes[0], axes_shown, strict=True):
        for number, sampler in enumerate(samplers):
            points = sorted(
                (getattr(s, cost), s.accuracy, *s.interval)
                for s in summaries
                if s.sampler == sampler
            )
            x, y, low, high = zip(*points, strict=True)
            below = [a - b for a, b in zip(y, low, strict=True)]
            above = [b - a for a, b in zip(y, high, strict=True)]
            axis.errorbar(
                x,
                y,
                yerr=(below, above),
                marker="osD^vPX"[number % 7],
                capsize=2,
                linewidth=1.2,
                label=sampler,
            )
        axis.set_xlabel(_LABELS[cost])
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("accuracy")
    axes[0][0].set_ylim(0, 1)
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=150)
    finally:
        pyplot.close(figure)
