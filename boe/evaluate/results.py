"""Writing results out in all their forms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from boe.evaluate.ablation import Ablation
from boe.evaluate.comparison import AXES, Comparison
from boe.evaluate.fidelity.study import Fidelity
from boe.evaluate.record import Record
from boe.evaluate.tables import (
    ablation_table,
    equal_cost_table,
    pairs_table,
    records_csv,
    summaries_csv,
    summary_table,
    text_table,
)
from boe.files import write_json, write_whole


def write_comparison(comparison: Comparison, directory: Path) -> None:
    """Write ``comparison.json`` (without records), ``.md``, two CSV files and the figures.

    Raises:
        ModuleNotFoundError: matplotlib is missing (the extra ``plot``).
    """
    from boe.evaluate.figures.costs import plot_comparison, plot_residual_entropy
    from boe.evaluate.figures.texts import plot_texts

    write_json(directory / "comparison.json", comparison.as_json(records=False))
    write_whole(directory / "comparison.md", comparison_markdown(comparison))
    write_whole(directory / "summary.csv", summaries_csv(comparison))
    write_whole(directory / "records.csv", records_csv(comparison.records))
    if comparison.summaries:
        plot_comparison(comparison, directory / "accuracy-cost.svg")
    if comparison.residual:
        plot_residual_entropy(comparison, directory / "residual-entropy.svg")
    if comparison.text is not None:
        plot_texts(comparison, directory / "text-cost.svg")


def comparison_markdown(comparison: Comparison) -> str:
    """The tables of a comparison as a document."""
    study = comparison.study
    seeds = ", ".join(map(str, study.seeds))
    where = comparison.environment
    parts = [
        f"# {study.task}, {study.difficulty}",
        f"{study.items} {study.split} items, seed {study.item_seed}, draws {seeds}; "
        f"{where['hardware']}, {where['threads']} threads, torch {where['torch']}.",
    ]
    if not comparison.complete:
        parts.append("Interrupted: not everything was decoded.")
    parts += ["## Accuracy and cost", summary_table(comparison).as_markdown()]
    if comparison.text is not None:
        parts += ["## What was written", text_table(comparison).as_markdown()]
    for axis in AXES:
        if any(level.axis == axis for level in comparison.equal_cost):
            parts += [
                f"## At equal cost: {axis}",
                "Share of right answers, and points ahead of the reference with a 95 % interval. "
                "\\* costs less at its dearest setting; – costs more at its cheapest.",
                equal_cost_table(comparison, axis).as_markdown(),
            ]
    if comparison.pairs:
        parts += ["## Paired tests", pairs_table(comparison).as_markdown()]
    return "\n\n".join(parts) + "\n"


def write_ablation(ablation: Ablation, directory: Path, records: Sequence[Record]) -> None:
    """Write ``ablation.json`` and ``.md``, the records as CSV, and the bars.

    Raises:
        ModuleNotFoundError: matplotlib is missing (the extra ``plot``).
    """
    from boe.evaluate.figures.ablation import plot_ablation

    study = ablation.study
    write_json(directory / "ablation.json", ablation.as_json())
    title = f"# {study.task}, {study.difficulty}: `{ablation.base}`, one change at a time"
    table = ablation_table(ablation).as_markdown()
    write_whole(directory / "ablation.md", f"{title}\n\n{table}\n")
    write_whole(directory / "records.csv", records_csv(records))
    if records:
        plot_ablation(ablation, directory / "ablation.svg")


def write_fidelity(fidelity: Fidelity, directory: Path) -> None:
    """Write ``fidelity.json``, ``.md``, ``.csv`` and the figure.

    Raises:
        ModuleNotFoundError: matplotlib is missing (the extra ``plot``).
    """
    from boe.evaluate.fidelity.report import (
        fidelity_csv,
        fidelity_table,
        plot_fidelity,
        theorem_table,
    )

    write_json(directory / "fidelity.json", fidelity.as_json())
    parts = [f"# Fidelity: {fidelity.study.source}"]
    if fidelity.scores:
        parts += [fidelity_table(fidelity).as_markdown(), theorem_table(fidelity).as_markdown()]
        plot_fidelity(fidelity, directory / "fidelity.svg")
    write_whole(directory / "fidelity.md", "\n\n".join(parts) + "\n")
    write_whole(directory / "fidelity.csv", fidelity_csv(fidelity))
