"""Sudoku 4×4 with its clues scattered over eight grids: a long prompt, a short answer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from boe.tasks.base import Judgement
from boe.tasks.sudoku4.grids import BOX, CELLS, COLUMN, ROW
from boe.tasks.sudoku4.task import SEPARATOR, Sudoku4Task
from boe.tasks.text.task import FILL, GIVEN, TextProblem
from boe.tasks.text.vocabulary import DIGIT_ID, encode
from boe.training import TrainConfig

VIEWS = 8
_PROMPT = VIEWS * (CELLS + 1)


class ScatteredSudoku4Task(Sudoku4Task):
    """Solve a 4×4 puzzle whose clues are scattered over eight grids.

    The prompt are eight grids of 16 digits, row by row with 0 for empty; every clue stands
    in one of them, at its place. They are to be laid over each other and the puzzle that
    results is to be solved: the answer are the 16 digits of the solved grid. The puzzles
    are those of the task ``sudoku4``, but the prompt is 8.5 times as long as the answer.

    An answer is right when it keeps the clues and breaks no rule. ``blank_cells`` is the
    share of the puzzle's empty cells that agree with the reference solution; where a puzzle
    has several solutions, only one of them is the reference.
    """

    name = "sudoku4-scattered"
    template = ";".join([GIVEN * CELLS] * VIEWS) + "=" + FILL * CELLS
    recipe = TrainConfig(steps=1000, batch_size=48, learning_rate=2e-3)
    weights = Path(__file__).parent / "scattered_weights"

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Puzzle, solution, and the grid that each cell's clue stands in, (N, 48)."""
        problems = super().draw(count, generator)
        views = torch.randint(VIEWS, (len(problems), CELLS), generator=generator)
        return torch.cat((problems, views), dim=1)

    def render(self, problems: Tensor) -> Tensor:
        puzzles, solutions, views = problems.split(CELLS, dim=1)
        ids = torch.tensor(encode(self.template.replace(GIVEN, "0").replace(FILL, "0")))
        ids = ids.repeat(len(problems), 1)
        ids[:, _PROMPT:] = DIGIT_ID + solutions
        grids = ids[:, :_PROMPT].view(-1, VIEWS, CELLS + 1)[..., :CELLS]
        grids.scatter_(1, views.unsqueeze(1), (DIGIT_ID + puzzles).unsqueeze(1))
        return ids

    @classmethod
    def clues(cls, ids: Tensor) -> Tensor:
        grids = ids[:, :_PROMPT].view(-1, VIEWS, CELLS + 1)[..., :CELLS]
        return grids.amax(dim=1) - DIGIT_ID

    def check(self, problem: TextProblem, answer: str) -> Judgement:
        grids = problem.prompt.rstrip("=").split(";")
        puzzle = "".join(max(cells) for cells in zip(*grids, strict=True))
        return super().check(TextProblem(puzzle + "=", problem.reference), answer)

    @classmethod
    def position_groups(cls) -> list[list[int]]:
        """Row, column, box, and which grid."""
        cells = [[*[*unit, SEPARATOR] * VIEWS, *unit] for unit in (ROW, COLUMN, BOX)]
        grids = [k // (CELLS + 1) for k in range(_PROMPT)] + [VIEWS] * CELLS
        return [*cells, grids]
