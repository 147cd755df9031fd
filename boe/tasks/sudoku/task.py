"""Sudoku as a task for masked diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers.transformers_model import TransformersDenoiser
from boe.tasks import checkpoints
from boe.tasks.base import Judgement, Task, TaskItem
from boe.tasks.repeats import has_repeat
from boe.tasks.splits import Split, check_split
from boe.tasks.sudoku.grid import UNITS, Grid, format_grid, is_complete, parse_grid, solutions
from boe.tasks.sudoku.model import (
    MASK_ID,
    PAD_ID,
    RECIPE,
    WEIGHTS,
    training_signatures,
)
from boe.tasks.sudoku.puzzles import (
    DIFFICULTIES,
    generate_puzzles,
    puzzles_of,
    validation_grids,
    validation_signatures,
)


class SudokuTask(Task):
    """Complete a Sudoku grid.

    An answer is right when it keeps the clues and breaks no rule; where the puzzle has a
    unique solution, as all but the difficulty "open" do, that means exactly the solution.

    Args:
        difficulty: a key of :data:`boe.tasks.sudoku.puzzles.DIFFICULTIES`.
    """

    name = "sudoku"
    difficulties: ClassVar[Mapping[str, object]] = DIFFICULTIES
    recipe = RECIPE

    def __init__(self, difficulty: str = "hard") -> None:
        if difficulty not in DIFFICULTIES:
            raise ValueError(
                f"difficulty must be one of {', '.join(DIFFICULTIES)}, got {difficulty!r}"
            )
        self.difficulty = difficulty

    def items(self, count: int, seed: int, split: Split = "test") -> list[TaskItem]:
        """The first ``count`` puzzles of the stream that ``seed`` and ``split`` fix.

        Validation puzzles are made from random symmetries of a few reserved grids. Test
        puzzles are symmetric forms neither of these nor of any training grid.

        Raises:
            ValueError: ``count`` is not positive, or ``split`` is neither of these two:
                training uses solved grids, not puzzles.
        """
        if count < 1:
            raise ValueError(f"the number of puzzles must be at least 1, got {count}")
        check_split(split)
        if split == "train":
            raise ValueError("split must be validation or test: sudoku has no training puzzles")
        trained = training_signatures()
        if split == "test":
            puzzles = generate_puzzles(self.difficulty, seed, trained | validation_signatures())
        else:
            puzzles = puzzles_of(validation_grids(trained), self.difficulty, seed)
        return [puzzle_item(k, puzzle.clues) for k, puzzle in enumerate(islice(puzzles, count))]

    def judge(self, item: TaskItem, ids: Tensor) -> Judgement:
        """Sudoku has no metric besides being right."""
        filled = ids.tolist()
        kept = all(clue in (0, digit) for clue, digit in zip(item.data, filled, strict=True))
        return Judgement(kept and is_complete(filled))

    def violated(self, canvas: Canvas) -> Tensor:
        """A digit that stands twice in a row, column or box."""
        digits = torch.where((canvas.ids > 0) & (canvas.ids < MASK_ID), canvas.ids, 0)
        return has_repeat(digits, torch.tensor(UNITS))

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
    return checkpoints.load_denoiser(WEIGHTS, MASK_ID, PAD_ID)
