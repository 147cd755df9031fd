"""``boe compare`` and the table of ``boe demo``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from boe.cli.output import (
    check_json_path,
    check_parent,
    console_for,
    emit_json,
    silence_transformers,
)
from boe.evaluate.comparison import Comparison, compare, environment
from boe.evaluate.record import Record
from boe.samplers import sampler_from
from boe.tasks import TASKS


def run_comparison(
    task_name: str,
    difficulty: str,
    samplers: str,
    tokens_per_step: str,
    puzzles: int,
    seed: int,
    temperature: float,
    batch: int,
    json_path: Path | None,
    plot_path: Path | None,
) -> Comparison:
    """Run, show and store a comparison; after Ctrl-C it is partial and stored all the same."""
    if task_name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task_name!r}")
    specs = split_samplers(samplers)
    tokens = split_numbers("tokens-per-step", tokens_per_step)
    check_json_path(json_path)
    if plot_path is not None:
        check_parent(plot_path)
        if plot_path.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"plot must end in .png, .svg or .pdf, got {plot_path.name!r}")
    console = console_for(json_path)
    task = TASKS[task_name](difficulty)
    silence_transformers()
    with console.status(f"making {puzzles} {difficulty} puzzles"):
        items = task.items(puzzles, seed)
    denoiser = task.denoiser()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task("decoding", total=len(items) * len(specs) * len(tokens))

        def advance(record: Record) -> None:
            name = f"{record.sampler}, {record.tokens_per_step} per step"
            progress.update(bar, advance=1, description=name)

        comparison = compare(
            denoiser,
            task,
            items,
            specs,
            tokens,
            seed=seed,
            temperature=temperature,
            batch_size=batch,
            settings={
                "task": task_name,
                "difficulty": difficulty,
                "puzzles": puzzles,
                "seed": seed,
                "temperature": temperature,
                "batch": batch,
            },
            on_record=advance,
        )
    if comparison.records:
        show_comparison(console, comparison)
    emit_json(json_path, comparison.as_json())
    if plot_path is not None and comparison.records:
        from boe.evaluate.plot import plot_comparison

        plot_comparison(comparison, plot_path)
        console.print(f"plot: {plot_path}")
    return comparison


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Accuracy and cost of every sampler at every setting, and paired tests against boe."""
    settings = comparison.settings
    table = Table(
        title=f"{settings['task']}, {settings['difficulty']}",
        caption="means per item: forward and backward passes, cost in forwards, seconds",
    )
    table.add_column("tokens\n/ step", justify="right")
    table.add_column("sampler", no_wrap=True)
    for name in ("solved", "95 %\ninterval", "fwd", "bwd", "cost", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    summaries = comparison.summaries()
    previous = None
    for summary in summaries:
        if previous is not None and summary.tokens_per_step != previous:
            table.add_section()
        previous = summary.tokens_per_step
        best = max(
            other.accuracy
            for other in summaries
            if other.tokens_per_step == summary.tokens_per_step
        )
        mark = "bold" if summary.accuracy == best else ""
        table.add_row(
            str(summary.tokens_per_step),
            summary.sampler,
            f"{summary.accuracy:.1%}",
            f"{summary.interval[0]:.0%} – {summary.interval[1]:.0%}",
            f"{summary.nfe_forward:.1f}",
            f"{summary.n_backward:.1f}",
            f"{summary.flop_equiv:.1f}",
            f"{summary.seconds:.3f}",
            style=mark,
        )
    console.print(table)
    _show_pairs(console, comparison)
    where = environment()
    count = max(summary.items for summary in summaries)
    console.print(
        f"{count} puzzles, seed {settings['seed']}; {where['hardware']}, "
        f"{where['threads']} threads, torch {where['torch']}"
    )
    if not comparison.complete:
        console.print("interrupted: the table shows what was done until then")


def _show_pairs(console: Console, comparison: Comparison) -> None:
    pairs = [
        pair
        for pair in comparison.pairs()
        if pair.first.startswith("boe") != pair.second.startswith("boe")
    ]
    if not pairs:
        return
    table = Table(title="the same puzzles, one by one: BoE against the others (exact McNemar)")
    table.add_column("tokens\nper step", justify="right")
    for name in ("", "solved only\nby it", "", "solved only\nby it", "p"):
        table.add_column(name, justify="right" if name else "left")
    previous = None
    for pair in pairs:
        if previous is not None and pair.tokens_per_step != previous:
            table.add_section()
        previous = pair.tokens_per_step
        sides = [(pair.first, pair.only_first), (pair.second, pair.only_second)]
        if not pair.first.startswith("boe"):
            sides.reverse()
        (ours, only_ours), (rival, only_rival) = sides
        table.add_row(
            str(pair.tokens_per_step),
            ours,
            str(only_ours),
            rival,
            str(only_rival),
            f"{pair.p_value:.3f}",
        )
    console.print(table)


def split_samplers(text: str) -> list[str]:
    """Sampler specifications from a list; each is checked.

    Options hold commas, so a list in which any has options is separated by semicolons.
    """
    separator = ";" if ";" in text or ":" in text else ","
    if separator == ";" and any("," in spec.partition(":")[0] for spec in text.split(";")):
        raise ValueError(f"separate samplers that have options by semicolons, got {text!r}")
    specs = [spec.strip() for spec in text.split(separator) if spec.strip()]
    if not specs:
        raise ValueError("samplers must name at least one sampler")
    for spec in specs:
        sampler_from(spec)
    if len(set(specs)) < len(specs):
        raise ValueError(f"samplers must be different, got {text!r}")
    return specs


def split_numbers(name: str, text: str) -> list[int]:
    """Positive numbers from a comma-separated list."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be numbers separated by commas, got {text!r}") from None
    if any(number < 1 for number in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(f"{name} must be different numbers of at least 1, got {text!r}")
    return numbers
