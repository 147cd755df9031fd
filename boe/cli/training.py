"""``boe train``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from boe.cli.output import (
    check_json_path,
    console_for,
    emit_json,
    progress_on,
    silence_transformers,
)
from boe.tasks import TASKS
from boe.tasks.prose.corpus import ARCHIVE, HOW_TO_GET
from boe.tasks.prose.fitting import SCORER_FOLDER, scorer_recipe, train_prose
from boe.tasks.prose.model_card import measure_prose, write_prose_model_card
from boe.tasks.prose.task import ProseTask
from boe.tasks.sudoku.model import train_sudoku
from boe.tasks.sudoku.model_card import measure, write_model_card
from boe.tasks.text.fitting import train_text_task
from boe.tasks.text.model_card import measure_text_task, write_text_model_card
from boe.tasks.text.task import CharacterTask
from boe.training import STATE_FILE, TrainConfig

SCHEMA = "boe/train/1"


def training_config(
    task_name: str,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    precision: str | None = None,
    seed: int = 0,
) -> TrainConfig:
    """The task's own recipe, with what is given in its place."""
    recipe = TASKS[task_name].recipe
    steps = recipe.steps if steps is None else steps
    return TrainConfig(
        steps=steps,
        batch_size=recipe.batch_size if batch_size is None else batch_size,
        learning_rate=recipe.learning_rate if learning_rate is None else learning_rate,
        warmup_steps=min(recipe.warmup_steps, steps),
        precision=recipe.precision if precision is None else precision,
        seed=seed,
    )


def run_train(
    task_name: str,
    output: Path,
    steps: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    precision: str | None,
    seed: int,
    items: int,
    json_path: Path | None,
    corpus: Path | None = None,
) -> None:
    """Train, evaluate, and write weights, tokenizer and model card to ``output``.

    Args:
        corpus: the text that the task ``prose`` is trained on; no other task takes one.
    """
    if task_name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task_name!r}")
    if (corpus is not None) != (task_name == ProseTask.name):
        raise ValueError(
            f"prose is trained on a corpus, other tasks on none: got {task_name} with "
            f"corpus {corpus}; `{HOW_TO_GET}` gets {ARCHIVE}"
        )
    check_json_path(json_path)
    config = training_config(task_name, steps, batch_size, learning_rate, precision, seed)
    console = console_for(json_path)
    silence_transformers()
    try:
        with progress_on(console, "training, loss {task.fields[loss]}") as progress:
            bar = progress.add_task("", total=_all_steps(task_name, config), loss="–")

            def advance(done: int, loss: float) -> None:
                progress.update(bar, completed=done, loss=f"{loss:.4f}")

            evaluate = _train(task_name, config, output, advance, corpus)
    except KeyboardInterrupt:
        if (output / STATE_FILE).exists():
            console.print(f"the same command goes on from {output / STATE_FILE}")
        raise
    with console.status("evaluating"):
        measured = evaluate(items)
    for state in (STATE_FILE, f"{SCORER_FOLDER}/{STATE_FILE}"):
        (output / state).unlink(missing_ok=True)
    console.print(f"saved to {output}")
    for name, value in measured.items():
        console.print(f"  {name}: {value:.1%}" if corpus is None else f"  {name}: {value:.3f}")
    emit_json(
        json_path,
        {"schema": SCHEMA, "output": str(output), "config": asdict(config), "measured": measured},
    )


def _all_steps(task_name: str, config: TrainConfig) -> int:
    """The steps of all models."""
    if task_name == ProseTask.name:
        return config.steps + scorer_recipe(config.seed).steps
    return config.steps


def _train(
    task_name: str,
    config: TrainConfig,
    output: Path,
    on_step: Callable[[int, float], None],
    corpus: Path | None,
) -> Callable[[int], dict[str, float]]:
    """Train a task's denoiser; returns what measures it and writes its card."""
    task = TASKS[task_name]
    if corpus is not None:
        scorer_config = scorer_recipe(config.seed)
        train_prose(config, scorer_config, corpus, output, on_step)

        def evaluate_prose(items: int) -> dict[str, float]:
            measured = measure_prose(output, items)
            write_prose_model_card(output, config, scorer_config, items, measured)
            return measured

        return evaluate_prose
    if not issubclass(task, CharacterTask):
        train_sudoku(config, output, on_step)

        def evaluate_sudoku(items: int) -> dict[str, float]:
            measured = measure(output, items)
            write_model_card(output, config, items, measured)
            return measured

        return evaluate_sudoku
    text_task: type[CharacterTask] = task
    train_text_task(text_task, config, output, on_step)

    def evaluate_text(items: int) -> dict[str, float]:
        measured = measure_text_task(text_task, output, items)
        write_text_model_card(text_task, output, config, items, measured)
        return measured

    return evaluate_text
