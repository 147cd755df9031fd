"""``boe compare`` and the table of ``boe demo``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from boe import defaults
from boe.cli.output import check_json_path, console_for, emit_json, show_table
from boe.cli.running import RECORDS, StudyRunner, run_visibly, task_named
from boe.evaluate.comparison import Comparison, analyse, check_references
from boe.evaluate.equal_cost import Level
from boe.evaluate.figures.style import check_figure_path, require_matplotlib
from boe.evaluate.results import write_comparison
from boe.evaluate.settings import Setting
from boe.evaluate.study import Study
from boe.evaluate.tables import p_text, points, text_table
from boe.evaluate.text_quality import require_mauve, text_results
from boe.files import check_writable, prepare_directory
from boe.tasks import ProseTask


def run_comparison(
    study: Study,
    json_path: Path | None,
    plot_path: Path | None,
    output: Path | None = None,
    references: tuple[str, ...] = (),
    mauve: bool = True,
    run_by: StudyRunner = run_visibly,
) -> Comparison:
    """Run, show and store a comparison; after Ctrl-C it is partial and stored all the same.

    Args:
        output: a directory for everything, from whose records a run is resumed.
        references: the curves whose costs the others are read off at.
        mauve: whether a task that writes prose is measured by it too.
        run_by: decodes what is missing.
    """
    task = task_named(study.task, study.difficulty)
    check_references(study, references)
    check_json_path(json_path)
    if plot_path is not None:
        check_writable(plot_path)
        check_figure_path(plot_path)
    if plot_path is not None or output is not None:
        require_matplotlib()
    if isinstance(task, ProseTask) and mauve:
        require_mauve()
    if output is not None:
        prepare_directory(output)
    console = console_for(json_path)
    run = run_by(study, task, console, None if output is None else output / RECORDS)
    comparison = analyse(run, references)
    if isinstance(task, ProseTask) and run.records:
        with console.status("measuring texts"):
            other = "validation" if study.split == "test" else "test"
            text = text_results(
                *(run.records, task.scorer(), task.references(study.split)),
                others=task.references(other),  # type: ignore[arg-type]
                mauve=mauve,
            )
        comparison = replace(comparison, text=text)
    if comparison.records:
        show_comparison(console, comparison)
    emit_json(json_path, comparison.as_json())
    if plot_path is not None and comparison.records:
        from boe.evaluate.figures.costs import plot_comparison

        plot_comparison(comparison, plot_path)
        console.print(f"plot: {plot_path}")
    if output is not None:
        write_comparison(comparison, output)
        console.print(f"results: {output}")
    return comparison


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Accuracy and cost of every sampler at every setting, paired tests, equal cost."""
    study = comparison.study
    table = Table(
        title=", ".join((study.task, study.difficulty, *_common(comparison))),
        caption="means per item: forward and backward passes, cost in forwards, seconds",
    )
    metrics = list(dict.fromkeys(name for s in comparison.summaries for name in s.metrics))
    # Where a terminal is narrow, samplers are folded: their names hold no spaces.
    table.add_column("setting", no_wrap=True)
    table.add_column("sampler", overflow="fold", min_width=12)
    for name in ("right", "95 %", *metrics, "fwd", "bwd", "cost", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    best = {
        setting: max(s.accuracy for s in comparison.summaries if s.setting == setting)
        for setting in {s.setting for s in comparison.summaries}
    }
    previous = None
    for summary in sorted(comparison.summaries, key=lambda s: _order(comparison, s.setting)):
        first = summary.setting != previous
        if previous is not None and first:
            table.add_section()
        previous = summary.setting
        low, high = summary.interval
        table.add_row(
            _said(comparison, summary.setting) if first else "",
            summary.sampler,
            f"{summary.accuracy:.1%}",
            f"{100 * low:.0f}–{100 * high:.0f}",
            *(f"{summary.metrics[name]:.1%}" for name in metrics),
            f"{summary.nfe_forward:.1f}",
            f"{summary.n_backward:.1f}",
            f"{summary.flop_equiv:.1f}",
            f"{summary.seconds:.3f}",
            style="bold" if summary.accuracy == best[summary.setting] else "",
        )
    show_table(console, table)
    _show_text(console, comparison)
    _show_pairs(console, comparison)
    _show_equal_cost(console, comparison)
    where = comparison.environment
    count = max(summary.items for summary in comparison.summaries)
    seeds = ", ".join(map(str, study.seeds))
    console.print(
        f"{count} {study.split} items, seed {study.item_seed}, draws {seeds}; "
        f"{where['hardware']}, {where['threads']} threads, torch {where['torch']}"
    )
    if not comparison.complete:
        console.print("interrupted: the table shows what was done until then")


def _common(comparison: Comparison) -> list[str]:
    """What all settings say besides their budgets, if they say the same."""
    said = {tuple(summary.setting.extras()) for summary in comparison.summaries}
    return list(said.pop()) if len(said) == 1 else []


def _said(comparison: Comparison, setting: Setting) -> str:
    """A setting, less what the title says of all."""
    return setting.pace if _common(comparison) else str(setting)


def _order(comparison: Comparison, setting: object) -> int:
    settings = [summary.setting for summary in comparison.summaries]
    return settings.index(setting)  # type: ignore[arg-type]


def _show_text(console: Console, comparison: Comparison) -> None:
    """The measures of the texts without their intervals, so that a terminal has the width."""
    if comparison.text is None:
        return
    content = text_table(comparison)
    kept = [place for place, column in enumerate(content.columns) if column != "95 %"]
    table = Table(title=", ".join(("what was written", *_common(comparison))))
    for place in kept:
        if place < content.labels:
            table.add_column(content.columns[place], overflow="fold", min_width=10)
        else:
            table.add_column(content.columns[place], justify="right")
    common = "".join(f", {said}" for said in _common(comparison))
    for row in content.rows:
        table.add_row(*(row[place].strip("`").removesuffix(common) for place in kept))
    show_table(console, table)


def _show_pairs(console: Console, comparison: Comparison) -> None:
    pairs = [p for p in comparison.pairs if _is_ours(p.first) != _is_ours(p.second)]
    if not pairs:
        return
    test = "exact McNemar" if len(comparison.study.seeds) == 1 else "exact sign flips"
    table = Table(title=f"the same items, one by one: ours against the others ({test})")
    table.add_column("setting", no_wrap=True)
    for name in ("", "right only\nby it", "", "right only\nby it", "points", "p"):
        if name:
            table.add_column(name, justify="right")
        else:
            table.add_column(overflow="fold", min_width=9)
    previous = None
    for pair in pairs:
        first = pair.setting != previous
        if previous is not None and first:
            table.add_section()
        previous = pair.setting
        sides = [(pair.first, pair.only_first), (pair.second, pair.only_second)]
        gain = pair.accuracy
        if not _is_ours(pair.first):
            sides.reverse()
            gain = -gain
        (ours, only_ours), (rival, only_rival) = sides
        table.add_row(
            _said(comparison, pair.setting) if first else "",
            ours,
            str(only_ours),
            rival,
            str(only_rival),
            points(gain),
            p_text(pair.p_value),
        )
    show_table(console, table)


def _is_ours(sampler: str) -> bool:
    return sampler.startswith("boe") or sampler == defaults.SAMPLER


def _show_equal_cost(console: Console, comparison: Comparison) -> None:
    """Every curve at the costs of a reference's settings, dearest last."""
    of_forwards = [level for level in comparison.equal_cost if level.axis == "flop_equiv"]
    if len(comparison.study.groups) == 1 and len(comparison.study.groups[0].samplers) == 1:
        return
    for reference in dict.fromkeys(level.reference for level in of_forwards):
        _show_levels(console, [level for level in of_forwards if level.reference == reference])


def _show_levels(console: Console, levels: Sequence[Level]) -> None:
    table = Table(
        title=f"right at equal cost (in forwards, of {levels[0].reference}); points ahead of it",
        caption="between settings interpolated; ! where the 95 % interval excludes 0; "
        "– where even the cheapest setting costs more",
    )
    table.add_column(overflow="fold", min_width=12)
    for level in levels:
        table.add_column(f"{level.cost:.1f}", justify="right", no_wrap=True)
    for place, first in enumerate(levels[0].readings):
        cells = []
        for level in levels:
            reading = level.readings[place]
            if reading.accuracy is None:
                cells.append("–")
                continue
            text = f"{reading.accuracy:.1%}"
            if reading.difference is not None and reading.difference_interval is not None:
                low, high = reading.difference_interval
                text += f" ({points(reading.difference)}{'!' if low > 0 or high < 0 else ''})"
            cells.append(text)
        table.add_row(first.curve, *cells)
    show_table(console, table)
