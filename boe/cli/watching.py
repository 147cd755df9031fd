"""``boe watch``: a canvas filling in, step by step, in the terminal or as a page."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text

from boe import defaults
from boe.cli.output import console_for, silence_transformers
from boe.cli.running import task_named
from boe.decoding import Item, StepRecord, TokensPerStep, generate
from boe.evaluate.player.page import write_page
from boe.evaluate.player.scene import Film, Scene, film_item, film_text
from boe.evaluate.settings import Setting
from boe.files import check_writable
from boe.samplers import strategy_from
from boe.tasks.sudoku.grid import Grid
from boe.tasks.sudoku.task import SudokuTask, load_denoiser, puzzle_item

_FRAME_SECONDS = 0.08


@dataclass(frozen=True)
class WatchPlan:
    """What is decoded: items of a task, or a prompt under a model.

    Attributes:
        item, count: the first item, and how many.
        length: masks appended to the prompt.
    """

    samplers: tuple[str, ...]
    setting: Setting
    seed: int = 0
    task: str | None = None
    difficulty: str = "hard"
    split: str = "test"
    item: int = 0
    count: int = 1
    model: str | None = None
    prompt: str | None = None
    length: int = 0

    def __post_init__(self) -> None:
        if (self.task is None) == (self.model is None):
            raise ValueError("watch needs either a task, or a model with a prompt")
        if self.model is not None and self.prompt is None:
            raise ValueError("a model needs a prompt")
        if not self.samplers:
            raise ValueError("samplers must name at least one sampler")


def run_watch(plan: WatchPlan, html: Path | None) -> None:
    """Decode, and show in the terminal or write one self-contained page."""
    if html is not None:
        check_writable(html)
    silence_transformers()
    console = console_for()
    with console.status("decoding"):
        scenes = _task_scenes(plan) if plan.task is not None else [_model_scene(plan)]
    if html is not None:
        write_page(scenes, html)
        console.print(f"page: {html}", soft_wrap=True)
        return
    for scene in scenes:
        for film in scene.films:
            console.print(f"\n{scene.title}: {film.sampler}, {film.setting}", soft_wrap=True)
            play(console, scene_frames(scene, film))
            if film.correct is not None:
                console.print("right" if film.correct else "wrong")
            console.print(str(film.account), style="dim")


def scene_frames(scene: Scene, film: Film) -> list[Text]:
    """One picture per step of a film, each with a line on what was revealed and why."""
    if scene.columns is not None:
        clues = tuple(0 if k == scene.mask_id else k for k in scene.start.tolist())
        solution = None if scene.truth is None else tuple(scene.truth.tolist())
        return _grid_frames(clues, film.steps, solution)
    ids = scene.start.tolist()
    pictures = []
    for number, record in enumerate(film.steps, 1):
        fresh = set(record.revealed.tolist())
        for position, token in zip(record.revealed.tolist(), record.tokens.tolist(), strict=True):
            ids[position] = token
        for position in record.remasked.tolist():
            ids[position] = scene.mask_id
        picture = draw_text(scene, ids, fresh, None if film.correct else scene.truth)
        picture.append(_explain(number, record), style="dim")
        pictures.append(picture)
    return pictures


def draw_text(scene: Scene, ids: list[int], fresh: set[int], truth: torch.Tensor | None) -> Text:
    """The canvas as text: what was given plain, written cyan, just written inverse.

    Where ``truth`` is given, what differs from it is red.
    """
    text = Text()
    start = scene.start.tolist()
    for position, index in enumerate(ids):
        if index == scene.mask_id:
            text.append("_", style="dim")
            continue
        style = "" if start[position] == index else "cyan"
        if truth is not None and int(truth[position]) != index:
            style = "bold red"
        if position in fresh:
            style += " reverse"
        text.append(scene.label(index), style=style)
    text.append("\n")
    return text


def draw_grid(clues: Grid, cells: list[int], fresh: set[int], solution: Grid | None) -> Text:
    """The grid as text: clues plain, written cells blue, those just written inverse.

    Where the solution is known, wrong cells are red.
    """
    text = Text()
    for row in range(9):
        if row and row % 3 == 0:
            text.append("──────┼───────┼──────\n", style="dim")
        for column in range(9):
            if column and column % 3 == 0:
                text.append("│ ", style="dim")
            cell = row * 9 + column
            digit = cells[cell]
            if not digit:
                text.append(". ", style="dim")
                continue
            style = "bold" if clues[cell] else "cyan"
            if solution is not None and solution[cell] != digit:
                style = "bold red"
            if cell in fresh:
                style += " reverse"
            text.append(str(digit), style=style)
            text.append(" ")
        text.append("\n")
    return text


def frames(clues: Grid, item: Item, solution: Grid | None) -> list[Text]:
    """One picture of the grid per step of a trajectory."""
    return _grid_frames(clues, tuple(item.trajectory or []), solution)


def _grid_frames(clues: Grid, steps: tuple[StepRecord, ...], solution: Grid | None) -> list[Text]:
    cells = list(clues)
    pictures = []
    for number, record in enumerate(steps, 1):
        fresh = set(record.revealed.tolist())
        for cell, digit in zip(record.revealed.tolist(), record.tokens.tolist(), strict=True):
            cells[cell] = digit
        for cell in record.remasked.tolist():
            cells[cell] = 0
        picture = draw_grid(clues, cells, fresh, solution)
        picture.append(_explain(number, record), style="dim")
        pictures.append(picture)
    return pictures


def _explain(number: int, record: StepRecord) -> str:
    total = float(record.entropy.sum())
    line = f"step {number}: {len(record.positions)} masks, {total:.2f} nats of entropy"
    if "tis" in record.parts:
        chosen = torch.isin(record.positions, record.revealed)
        gain = float(record.parts["tis"][chosen].sum())
        line += f"; expected to remove {gain:.2f} (TIS)"
    return line + "\n"


def play(console: Console, pictures: list[Text]) -> None:
    """Show the pictures as an animation; only the last where output is no terminal."""
    if not console.is_terminal:
        console.print(pictures[-1])
        return
    with Live(pictures[0], console=console, auto_refresh=False) as live:
        for picture in pictures:
            live.update(picture, refresh=True)
            time.sleep(_FRAME_SECONDS)


def show_demo_trajectory(difficulty: str, seed: int) -> None:
    """Decode the demo's first puzzle with BoE and show the grid filling in.

    If that goes wrong, also what becomes of it when wrong guesses are taken back.
    """
    console = console_for()
    task = SudokuTask(difficulty)
    clues = task.items(1, seed)[0].data
    item = decode_puzzle(clues, "boe", 1, 0.0, seed)
    pictures = frames(clues, item, None)
    console.print("\nBoE on the first puzzle, one token per step:")
    if console.is_terminal:
        play(console, pictures)
    else:
        steered = [k for k, step in enumerate(item.trajectory or []) if "tis" in step.parts]
        middle = steered[len(steered) // 2] if steered else len(pictures) // 2
        for index in sorted({0, middle, len(pictures) - 1}):
            console.print(pictures[index])
    if _say_verdict(console, task, clues, item):
        return
    searching = f"{defaults.SAMPLER}+backtrack"
    console.print(f"\nThe same with {searching}, which takes wrong guesses back:")
    _say_verdict(console, task, clues, decode_puzzle(clues, searching, 1, 0.0, seed))


def _say_verdict(console: Console, task: SudokuTask, clues: Grid, item: Item) -> bool:
    """Print whether the puzzle is solved, its answer and its cost; whether it is."""
    correct = task.judge(puzzle_item(0, clues), item.ids).correct
    verdict = "solved" if correct else "not solved"
    console.print(f"{verdict}: {task.answer(item.ids)} ({item.account})", soft_wrap=True)
    return correct


def decode_puzzle(
    clues: Grid, sampler: str, tokens_per_step: int, temperature: float | None, seed: int
) -> Item:
    """One puzzle decoded with its trajectory."""
    return generate(
        load_denoiser(),
        puzzle_item(0, clues).canvas,
        strategy_from(sampler).keeping_to(SudokuTask("hard").violated),
        budget=TokensPerStep(tokens_per_step),
        temperature=temperature,
        seed=seed,
        trajectory=True,
    ).items[0]


def _task_scenes(plan: WatchPlan) -> list[Scene]:
    assert plan.task is not None
    task = task_named(plan.task, plan.difficulty)
    last = plan.item + plan.count
    items = task.items(last, plan.seed, plan.split)  # type: ignore[arg-type]
    denoiser = task.denoiser()
    return [
        film_item(
            task,
            item,
            denoiser,
            plan.samplers,
            plan.setting,
            plan.seed,
            title=f"{plan.task}, {plan.difficulty}, item {item.number}",
        )
        for item in items[plan.item : last]
    ]


def _model_scene(plan: WatchPlan) -> Scene:
    from boe.denoisers.loading import load_model
    from boe.text.prompts import prompt_ids
    from boe.text.tokenization import Texts

    assert plan.model is not None
    assert plan.prompt is not None
    loaded = load_model(plan.model)
    texts = Texts(loaded.tokenizer, loaded.denoiser.facts.mask_id)
    ids, _ = prompt_ids(texts, plan.prompt, plan.length)

    def label(index: int) -> str:
        return str(loaded.tokenizer.decode([index]))

    title = Path(plan.model).name
    return film_text(loaded.denoiser, ids, label, plan.samplers, plan.setting, plan.seed, title)
