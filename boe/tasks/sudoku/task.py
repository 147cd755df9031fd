"""Sudoku as a task for masked diffusion."""

from __future__ import annotations

from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from boe.denoisers.transformers_model import TransformersDenoiser
from boe.tasks.base import Task, TaskItem
from boe.tasks.sudoku.grid import Grid, format_grid, is_complete, parse_grid, solutions
from boe.tasks.sudoku.model import (
    MASK_ID,
    PAD_ID,
    WEIGHTS,
    training_signatures,
)
from boe.tasks.sudoku.puzzles import DIFFICULTIES, generate_puzzles


class SudokuTask(Task):
    """Complete a Sudoku grid.

    An answer is right when it keeps the clues and breaks no rule; where the puzzle has a
    unique solution, as all but the difficulty "open" do, that means exactly the solution.

    Args:
        difficulty: a key of :data:`boe.tasks.sudoku.puzzles.DIFFICULTIES`.
    """

    name = "sudoku"

    def __init__(self, difficulty: str = "hard") -> None:
        if difficulty not in DIFFICULTIES:
            raise ValueError(
                f"difficulty must be one of {', '.join(DIFFICULTIES)}, got {difficulty!r}"
            )
        self.difficulty = difficulty

    def items(self, count: int, seed: int) -> list[TaskItem]:
        if count < 1:
            raise ValueError(f"the number of puzzles must be at least 1, got {count}")
        puzzles = generate_puzzles(self.difficulty, seed, training_signatures())
        return [puzzle_item(k, puzzle.clues) for k, puzzle in enumerate(islice(puzzles, count))]

    def judge(self, item: TaskItem, ids: Tensor) -> bool:
        filled = ids.tolist()
        kept = all(clue in (0, digit) for clue, digit in zip(item.data, filled, strict=True))
        return kept and is_complete(filled)

    def answer(self, ids: Tensor) -> str:
        return format_grid([digit if 1 <= digit <= 9 else 0 for digit in ids.tolist()])

    def denoiser(self) -> TransformersDenoiser:
        return self._denoiser

    @cached_property
    def _denoiser(self) -> TransformersDenoiser:
        return load_denoiser()


def puzzle_item(number: int, clues: Grid) -> TaskItem:
    """A task item from clues, 0 for empty."""
    ids = torch.tensor(clues, dtype=torch.int64)
    return TaskItem(number, torch.where(ids == 0, MASK_ID, ids), clues)


def read_puzzle(text: str) -> Grid:
    """A user's puzzle, checked: 81 cells, no contradiction, at least one solution and cell to
    fill.

    Raises:
        ValueError: with the reason.
    """
    clues = parse_grid(text)
    if 0 not in clues:
        raise ValueError("the puzzle has no empty cell")
    if next(solutions(clues), None) is None:
        raise ValueError("the puzzle has no solution")
    return clues


def load_denoiser() -> TransformersDenoiser:
    """The embedded Sudoku denoiser."""
    from transformers import RobertaPreLayerNormForMaskedLM

    model = RobertaPreLayerNormForMaskedLM.from_pretrained(WEIGHTS)
    return TransformersDenoiser(model, MASK_ID, suppressed_ids=(PAD_ID,))
