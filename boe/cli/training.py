"""``boe train``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from boe.cli.output import check_json_path, console_for, emit_json, silence_transformers
from boe.tasks.sudoku.model import train_sudoku
from boe.tasks.sudoku.model_card import measure, write_model_card
from boe.training import STATE_FILE, TrainConfig

SCHEMA = "boe/train/1"


def run_train_sudoku(
    output: Path,
    steps: int,
    batch_size: int,
    learning_rate: float,
    precision: str,
    seed: int,
    puzzles: int,
    json_path: Path | None,
) -> None:
    """Train, evaluate, and write weights, tokenizer and model card to ``output``."""
    check_json_path(json_path)
    config = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=min(100, steps),
        precision=precision,
        seed=seed,
    )
    console = console_for(json_path)
    silence_transformers()
    columns = (
        TextColumn("training, loss {task.fields[loss]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress:
            bar = progress.add_task("", total=steps, loss="–")

            def advance(done: int, loss: float) -> None:
                progress.update(bar, completed=done, loss=f"{loss:.4f}")

            model = train_sudoku(config, output, advance)
    except KeyboardInterrupt:
        if (output / STATE_FILE).exists():
            console.print(f"the same command goes on from {output / STATE_FILE}")
        raise
    with console.status("evaluating"):
        measured = measure(model, puzzles)
    write_model_card(output, config, measured)
    (output / STATE_FILE).unlink()
    console.print(f"saved to {output}")
    for name, value in measured.items():
        console.print(f"  {name}: {value:.1%}")
    emit_json(
        json_path,
        {"schema": SCHEMA, "output": str(output), "config": asdict(config), "measured": measured},
    )
