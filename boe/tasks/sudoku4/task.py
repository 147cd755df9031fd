"""Sudoku 4×4 as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.tasks.base import Judgement
from boe.tasks.repeats import has_repeat
from boe.tasks.scoring.sudoku4 import cell_accuracy
from boe.tasks.sudoku4.grids import (
    BOX,
    CELLS,
    COLUMN,
    ROW,
    SIDE,
    UNITS,
    count_solutions,
    is_complete,
    solved_grids,
)
from boe.tasks.text.model import ModelShape
from boe.tasks.text.task import FILL, GIVEN, CharacterTask, TextProblem
from boe.tasks.text.vocabulary import DIGIT_ID, MASK_ID, encode
from boe.training import TrainConfig

SEPARATOR = 4
"""Group of the position between puzzle and answer, which is in no row, column or box."""


@dataclass(frozen=True)
class Sudoku4Difficulty:
    """Settings of the puzzles.

    Attributes:
        clues: number of given cells, 0 to 15.
        unique: the puzzle has one solution; otherwise every completion counts.
    """

    clues: int
    unique: bool = True

    def __post_init__(self) -> None:
        lowest = 4 if self.unique else 0
        if not lowest <= self.clues < CELLS:
            raise ValueError(f"clues must be in [{lowest}, {CELLS - 1}], got {self.clues}")


class Sudoku4Task(CharacterTask[Sudoku4Difficulty]):
    """Copy a 4×4 puzzle with its empty cells filled in.

    The prompt is the puzzle as d1 writes it, 16 digits row by row with 0 for empty, and
    ``=``; the answer are all 16 digits of the solved grid, clues included.

    An answer is right when it keeps the clues and breaks no rule. ``blank_cells`` is d1's
    figure, the share of empty cells that agree with the reference solution; where a puzzle
    has several solutions, only one of them is the reference.
    """

    name = "sudoku4"
    template = GIVEN * CELLS + "=" + FILL * CELLS
    difficulties: ClassVar[Mapping[str, Sudoku4Difficulty]] = {
        "d1": Sudoku4Difficulty(8),
        "unique": Sudoku4Difficulty(5),
        "medium": Sudoku4Difficulty(5, unique=False),
        "hard": Sudoku4Difficulty(3, unique=False),
    }
    training_mix = ("d1", "unique", "hard")
    shape = ModelShape(layers=3, width=96)
    recipe = TrainConfig(steps=3000, batch_size=96, learning_rate=2e-3)
    weights = Path(__file__).parent / "weights"

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Puzzle and solution, (N, 32). Fewer than ``count`` where they must be unique."""
        base = solved_grids()
        solutions = base[torch.randint(len(base), (count,), generator=generator)]
        rank = torch.rand(count, CELLS, generator=generator).argsort(dim=1)
        puzzles = torch.where(rank < self.difficulty.clues, solutions, 0)
        problems = torch.cat((puzzles, solutions), dim=1)
        return problems[count_solutions(puzzles) == 1] if self.difficulty.unique else problems

    def key(self, problems: Tensor) -> Tensor:
        """The puzzle in base 5."""
        return (problems[:, :CELLS] * 5 ** torch.arange(CELLS)).sum(dim=1)

    def render(self, problems: Tensor) -> Tensor:
        equals = torch.full((len(problems), 1), encode("=")[0])
        ids = problems + DIGIT_ID
        return torch.cat((ids[:, :CELLS], equals, ids[:, CELLS:]), dim=1)

    def violated(self, canvas: Canvas) -> Tensor:
        """A cell that is no digit from 1 to 4, changes a clue, or repeats one in its unit."""
        clues = self.clues(canvas.ids)
        ids = canvas.ids[:, -CELLS:]
        written = ids != MASK_ID
        cells = torch.where(written, ids - DIGIT_ID, 0)
        wrong = written & ((cells < 1) | (cells > SIDE) | ((clues > 0) & (cells != clues)))
        grid = torch.where(written, cells, clues)
        return wrong.any(dim=1) | has_repeat(grid, torch.tensor(UNITS))

    @classmethod
    def clues(cls, ids: Tensor) -> Tensor:
        """The puzzle in the prompts of canvases (N, L), 0 for empty, int64 (N, 16)."""
        return ids[:, :CELLS] - DIGIT_ID

    def check(self, problem: TextProblem, answer: str) -> Judgement:
        puzzle = problem.prompt[:CELLS]
        kept = all(clue in ("0", cell) for clue, cell in zip(puzzle, answer, strict=True))
        metrics = {"blank_cells": cell_accuracy(puzzle, problem.reference, answer)}
        return Judgement(kept and is_complete(answer), metrics)

    @classmethod
    def position_groups(cls) -> list[list[int]]:
        """Row, column, box, and puzzle or answer."""
        cells = [[*unit, SEPARATOR, *unit] for unit in (ROW, COLUMN, BOX)]
        return [*cells, [0] * CELLS + [1] + [2] * CELLS]
