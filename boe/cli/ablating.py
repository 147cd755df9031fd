"""``boe ablate``."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from boe.cli.output import (
    check_json_path,
    console_for,
    emit_json,
    show_table,
    silence_transformers,
)
from boe.cli.plans import AblatePlan
from boe.cli.running import RECORDS, StudyRunner, run_visibly, task_named
from boe.evaluate.ablation import (
    Ablation,
    AblationRow,
    ablation_of,
    study_of,
    tried_out,
    variants_of,
)
from boe.evaluate.comparison import analyse
from boe.evaluate.figures.style import check_figure_path, require_matplotlib
from boe.evaluate.results import write_ablation
from boe.evaluate.settings import Setting
from boe.evaluate.tables import p_text, points_between
from boe.files import check_writable, prepare_directory


def run_ablation(
    plan: AblatePlan,
    json_path: Path | None,
    plot_path: Path | None,
    output: Path | None,
    run_by: StudyRunner = run_visibly,
) -> Ablation:
    """Run, show and store; after Ctrl-C the result is partial and stored all the same.

    Args:
        run_by: decodes what is missing.
    """
    task = task_named(plan.study.task, plan.study.difficulty)
    variants = variants_of(plan.base, plan.axes)
    check_json_path(json_path)
    if plot_path is not None:
        check_writable(plot_path)
        check_figure_path(plot_path)
    if plot_path is not None or output is not None:
        require_matplotlib()
    if output is not None:
        prepare_directory(output)
    console = console_for(json_path)
    silence_transformers()
    with console.status("trying the variants out"):
        first = task.items(1, plan.study.item_seed, plan.study.split)[0]
        setting = plan.study.groups[0].settings[0]
        variants = tried_out(variants, task.denoiser(), first, setting, task)
    study = study_of(plan.base, variants, plan.study)
    run = run_by(study, task, console, None if output is None else output / RECORDS)
    ablation = ablation_of(plan.base, plan.axes, variants, analyse(run))
    show_ablation(console, ablation)
    emit_json(json_path, ablation.as_json())
    if plot_path is not None and run.records:
        from boe.evaluate.figures.ablation import plot_ablation

        plot_ablation(ablation, plot_path)
        console.print(f"plot: {plot_path}")
    if output is not None:
        write_ablation(ablation, output, run.records)
        console.print(f"results: {output}")
    return ablation


def show_ablation(console: Console, ablation: Ablation) -> None:
    """What each change does, on the same items: a table per setting."""
    by_setting: dict[Setting, list[AblationRow]] = {}
    for row in ablation.rows:
        if row.summary is not None:
            by_setting.setdefault(row.summary.setting, []).append(row)
    for setting, rows in by_setting.items():
        study = ablation.study
        _show_setting(
            console,
            f"{study.task}, {study.difficulty}, {setting}: {ablation.base}, one change at a time",
            rows,
        )
    refused = {
        (row.variant.axis, row.variant.label): row.variant.refused
        for row in ablation.rows
        if row.summary is None
    }
    for (axis, label), why in refused.items():
        console.print(f"{axis} = {label} was refused: {why}", style="dim")
    if not ablation.complete:
        console.print("interrupted: the table shows what was done until then")


def _show_setting(console: Console, title: str, rows: list[AblationRow]) -> None:
    # Without rules between the columns it fits into 80 characters.
    table = Table(
        title=title,
        caption="points against the base with 95 % interval; p exact, Holm: adjusted for all rows",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("change", overflow="fold", min_width=12)
    for name in ("right", "points", "p", "Holm", "cost", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        assert row.summary is not None
        if previous not in (None, row.variant.axis):
            table.add_section()
        previous = row.variant.axis
        pair = row.pair
        table.add_row(
            f"{row.variant.axis} = {row.variant.label}",
            f"{row.summary.accuracy:.1%}",
            "base" if pair is None else points_between(pair.accuracy, pair.accuracy_interval),
            "" if pair is None else p_text(pair.p_value),
            "" if row.p_holm is None else p_text(row.p_holm),
            f"{row.summary.flop_equiv:.1f}",
            f"{row.summary.seconds:.3f}",
        )
    show_table(console, table)
