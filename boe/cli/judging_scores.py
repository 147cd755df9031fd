"""``boe fidelity``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

from boe.cli.output import (
    check_json_path,
    console_for,
    emit_json,
    progress_on,
    show_table,
    silence_transformers,
)
from boe.cli.plans import FidelityPlan
from boe.cli.running import RECORDS, task_named
from boe.denoisers.base import Denoiser
from boe.evaluate.fidelity.canvases import decoded_states, masked_text
from boe.evaluate.fidelity.measuring import measure_fidelity
from boe.evaluate.fidelity.report import fidelity_table, plot_fidelity, theorem_table
from boe.evaluate.fidelity.study import Fidelity
from boe.evaluate.figures.style import check_figure_path, require_matplotlib
from boe.evaluate.results import write_fidelity
from boe.evaluate.store import RecordStore
from boe.evaluate.tables import Table as ResultTable
from boe.files import check_writable, prepare_directory
from boe.samplers import sampler_from


def run_fidelity(
    plan: FidelityPlan, json_path: Path | None, plot_path: Path | None, output: Path | None
) -> Fidelity:
    """Measure, show and store; after Ctrl-C the result is partial and stored all the same."""
    sampler_from(plan.order)
    check_json_path(json_path)
    if plan.text is not None and not plan.text.is_file():
        raise FileNotFoundError(f"text {plan.text} is not a file")
    if plot_path is not None:
        check_writable(plot_path)
        check_figure_path(plot_path)
    if plot_path is not None or output is not None:
        require_matplotlib()
    if output is not None:
        prepare_directory(output)
    console = console_for(json_path)
    silence_transformers()
    with console.status("loading the model and making canvases"):
        denoiser, canvases = _open(plan)
    study = plan.study
    path = None if output is None else output / RECORDS
    with RecordStore(path) as store, progress_on(console) as progress:
        bar = progress.add_task("canvases", total=study.canvases * len(study.fractions))
        fidelity = measure_fidelity(
            study,
            denoiser,
            canvases,
            store=store,
            on_canvas=lambda fraction: progress.update(
                bar, advance=1, description=f"{fraction:.0%} masked"
            ),
        )
    show_fidelity(console, fidelity)
    emit_json(json_path, fidelity.as_json())
    if plot_path is not None and fidelity.scores:
        plot_fidelity(fidelity, plot_path)
        console.print(f"plot: {plot_path}")
    if output is not None:
        write_fidelity(fidelity, output)
        console.print(f"results: {output}")
    return fidelity


def show_fidelity(console: Console, fidelity: Fidelity) -> None:
    """Rank correlations and regrets, and Theorem 3.1's remainder."""
    console.print(f"{fidelity.study.source}; {fidelity.study.canvases} canvases a fraction")
    if not fidelity.scores:
        console.print("no canvas had three candidates and a probe")
        return
    _show(
        console,
        fidelity_table(fidelity),
        "ranking of the candidates against the true expected drop of the other masks' entropy",
        "regret of the pick: 0 for the best, 1 for a random one",
    )
    _show(
        console,
        theorem_table(fidelity),
        "Theorem 3.1, nats: true relaxed drop, and what eq. 14 misses of it",
        "within: share of candidates inside the bound; ordered: pairs that Corollary 3.2 decides",
    )
    if not fidelity.complete:
        console.print("interrupted: the tables show what was done until then")


def _show(console: Console, result: ResultTable, title: str, caption: str) -> None:
    table = Table(title=title, caption=caption)
    for place, name in enumerate(result.columns):
        table.add_column(name, justify="left" if place < result.labels else "right")
    for row in result.rows:
        table.add_row(*(cell.strip("`") for cell in row))
    show_table(console, table)


def _open(plan: FidelityPlan) -> tuple[Denoiser, Callable[[float], Sequence[Tensor]]]:
    study = plan.study
    if plan.task is not None:
        task = task_named(plan.task, plan.difficulty)
        items = task.items(study.canvases, study.seed, "validation")
        denoiser = task.denoiser()
        starts = [item.canvas for item in items]
        return denoiser, lambda fraction: decoded_states(
            denoiser, starts, fraction, plan.order, study.seed
        )
    from boe.denoisers.loading import load_model

    assert plan.model is not None
    assert plan.text is not None
    loaded = load_model(plan.model)
    text = plan.text.read_text()
    mask_id = loaded.denoiser.facts.mask_id
    return loaded.denoiser, lambda fraction: masked_text(
        loaded.tokenizer, mask_id, text, fraction, study.canvases, plan.length, study.seed
    )
