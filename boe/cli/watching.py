"""The grid filling in, step by step."""

from __future__ import annotations

import time

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text

from boe.decoding import Item, StepRecord, TokensPerStep, generate
from boe.tasks.sudoku.grid import Grid
from boe.tasks.sudoku.task import SudokuTask, load_denoiser, puzzle_item

_FRAME_SECONDS = 0.08


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
    """One picture per step of a trajectory, each with a line on what was revealed and why."""
    cells = list(clues)
    pictures = []
    for number, record in enumerate(item.trajectory or [], 1):
        fresh = set(record.revealed.tolist())
        for cell, digit in zip(record.revealed.tolist(), record.tokens.tolist(), strict=True):
            cells[cell] = digit
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
    """Decode the demo's first puzzle with BoE and show the grid filling in."""
    console = Console()
    task = SudokuTask(difficulty)
    clues = task.items(1, seed)[0].data
    item = decode_puzzle(clues, "boe", 1, 0.0, seed)
    pictures = frames(clues, item, None)
    console.print("\nBoE on the first puzzle, one token per step:")
    if console.is_terminal:
        play(console, pictures)
    else:
        for index in sorted({0, len(pictures) // 2, len(pictures) - 1}):
            console.print(pictures[index])
    verdict = "solved" if task.judge(puzzle_item(0, clues), item.ids) else "not solved"
    console.print(f"{verdict}: {task.answer(item.ids)}", soft_wrap=True)


def decode_puzzle(
    clues: Grid, sampler: str, tokens_per_step: int, temperature: float, seed: int
) -> Item:
    """One puzzle decoded with its trajectory."""
    return generate(
        load_denoiser(),
        puzzle_item(0, clues).canvas,
        sampler,
        budget=TokensPerStep(tokens_per_step),
        temperature=temperature,
        seed=seed,
        trajectory=True,
    ).items[0]
