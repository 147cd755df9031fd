"""The 288 solved Sudoku grids of order 4, and puzzles made from them."""

from __future__ import annotations

from functools import cache
from itertools import permutations, product

import torch
from torch import Tensor

SIDE = 4
CELLS = SIDE * SIDE
ROW = [cell // SIDE for cell in range(CELLS)]
COLUMN = [cell % SIDE for cell in range(CELLS)]
BOX = [row // 2 * 2 + column // 2 for row, column in zip(ROW, COLUMN, strict=True)]
UNITS = [
    [cell for cell in range(CELLS) if unit[cell] == number]
    for unit in (ROW, COLUMN, BOX)
    for number in range(SIDE)
]


def is_complete(text: str) -> bool:
    """Whether 16 characters are a solved grid, row by row."""
    if len(text) != CELLS or set(text) != set("1234"):
        return False
    return all(len({text[cell] for cell in unit}) == SIDE for unit in UNITS)


@cache
def solved_grids() -> Tensor:
    """All solved grids in lexicographic order, int64 (288, 16)."""
    rows = ["".join(row) for row in permutations("1234")]
    bands = [top + low for top, low in product(rows, repeat=2) if not {*top[:2]} & {*low[:2]}]
    texts = (upper + lower for upper, lower in product(bands, repeat=2))
    return torch.tensor([[int(digit) for digit in text] for text in texts if is_complete(text)])


def count_solutions(puzzles: Tensor) -> Tensor:
    """Number of solved grids that agree with each puzzle (N, 16), 0 for empty; int64 (N,)."""
    clues = puzzles.unsqueeze(1)
    return ((clues == 0) | (clues == solved_grids())).all(dim=2).sum(dim=1)
