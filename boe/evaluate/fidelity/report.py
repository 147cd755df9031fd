"""Fidelity as tables and as a figure."""

from __future__ import annotations

from pathlib import Path

from boe.evaluate.fidelity.study import Fidelity, ScoreFidelity
from boe.evaluate.figures.style import figure, looks
from boe.evaluate.tables import Table, code, csv_text, percent

MAIN_TRUTH = "discrete_others"
"""What a reveal does in expectation over what is written, to all other masks."""


def fidelity_table(fidelity: Fidelity, truth: str = MAIN_TRUTH) -> Table:
    """A row per score; per mask fraction rank correlation, its interval and regret."""
    fractions = fidelity.study.fractions
    cells = {(s.score, s.fraction): s for s in fidelity.scores}
    names = list(dict.fromkeys(s.score for s in fidelity.scores))
    rows = []
    for name in names:
        found = [cells.get((name, fraction)) for fraction in fractions]
        costs = [s.cost for s in found if s is not None]
        rows.append(
            (
                code(name),
                f"{sum(costs) / len(costs):.2f}",
                *("–" if s is None else _correlation(s, truth) for s in found),
                *("–" if s is None else f"{s.regret[truth]:.2f}" for s in found),
            )
        )
    columns = (
        *("score", "cost"),
        *(f"rank correlation, {fraction:.0%} masked" for fraction in fractions),
        *(f"regret, {fraction:.0%}" for fraction in fractions),
    )
    return Table(columns, tuple(rows))


def theorem_table(fidelity: Fidelity) -> Table:
    """A row per mask fraction: the first-order remainder against Theorem 3.1's bound."""
    rows = tuple(
        (
            f"{check.fraction:.0%}",
            str(check.candidates),
            f"{check.drop:.2f}",
            f"{check.remainder:.2f}",
            f"{check.midpoint_remainder:.2f}",
            f"{check.bound:.2f}",
            percent(check.within),
            percent(check.ordered),
        )
        for check in fidelity.theorem
    )
    columns = ("masked", "candidates", "true drop", "remainder", "at the midpoint", "bound M/2")
    return Table((*columns, "within", "pairs ordered"), rows)


def fidelity_csv(fidelity: Fidelity) -> str:
    """A row per score, mask fraction and truth."""
    rows = [
        [
            *(s.fraction, s.score, truth, s.canvases, s.cost, s.spearman[truth]),
            *s.spearman_interval[truth],
            s.regret[truth],
        ]
        for s in fidelity.scores
        for truth in s.spearman
    ]
    columns = ["fraction", "score", "truth", "canvases", "cost", "spearman", "low", "high"]
    return csv_text([*columns, "regret"], rows)


def plot_fidelity(fidelity: Fidelity, path: Path, truth: str = MAIN_TRUTH) -> None:
    """Draw rank correlation against the cost of a step; a panel per mask fraction.

    Raises:
        ModuleNotFoundError: matplotlib is missing (the extra ``plot``).
        ValueError: there is nothing to draw.
    """
    if not fidelity.scores:
        raise ValueError("no canvas had three candidates and a probe")
    names = list(dict.fromkeys(s.score for s in fidelity.scores))
    fractions = list(dict.fromkeys(s.fraction for s in fidelity.scores))
    kinds = dict(zip(names, looks(len(names)), strict=True))
    with figure(path, 1, len(fractions), (3.6, 3.6)) as (drawn, axes):
        for axis, fraction in zip(axes, fractions, strict=True):
            for score in fidelity.scores:
                if score.fraction != fraction:
                    continue
                low, high = score.spearman_interval[truth]
                value = score.spearman[truth]
                axis.errorbar(
                    [score.cost],
                    [value],
                    yerr=([max(0.0, value - low)], [max(0.0, high - value)]),
                    label=score.score,
                    color=kinds[score.score]["color"],
                    marker=kinds[score.score]["marker"],
                    fillstyle="full" if kinds[score.score]["linestyle"] == "-" else "none",
                    capsize=2,
                    linestyle="",
                )
            axis.axhline(0.0, color="#333333", linewidth=0.8)
            axis.set_ylim(-1.05, 1.05)
            axis.set_xlabel(f"cost of a step, in forwards\n({fraction:.0%} masked)")
        axes[0].set_ylabel("rank correlation with the true drop")
        handles, labels = axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _correlation(score: ScoreFidelity, truth: str) -> str:
    low, high = score.spearman_interval[truth]
    return f"{score.spearman[truth]:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")
