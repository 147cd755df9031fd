"""Solved grids, their symmetries, and puzzles with exactly one solution.

Everything here is a function of its seed. Training grids and evaluation puzzles
are kept apart by a symmetry invariant (:func:`symmetry_signature`): an evaluation
grid whose signature any training grid shares is thrown away, so that no
evaluation puzzle is a relabelled or permuted training grid.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from boe.tasks.sudoku.grid import CELLS, Grid, solutions

DIFFICULTIES = {"easy": 36, "medium": 30, "hard": 26, "expert": 24, "open": 20}
"""Named difficulties and their number of clues. Puzzles have exactly one solution, except
"open" ones, whose clues are any cells of a solved grid."""

VALIDATION_GRIDS = 64
"""Validation puzzles are random symmetries of so many solved grids."""


@dataclass(frozen=True)
class Puzzle:
    """A puzzle and the solved grid that it was made from."""

    clues: Grid
    solution: Grid

    @property
    def blanks(self) -> int:
        return self.clues.count(0)


def random_solved_grid(rng: random.Random) -> Grid:
    """A solved grid: three random diagonal boxes, completed by random search."""
    seed_cells = [0] * CELLS
    for box in range(3):
        digits = rng.sample(range(1, 10), 9)
        for k, digit in enumerate(digits):
            seed_cells[(box * 3 + k // 3) * 9 + box * 3 + k % 3] = digit
    return next(solutions(seed_cells, rng))


def solved_grids(count: int, seed: int) -> Tensor:
    """``count`` solved grids as int64 (count, 81)."""
    rng = random.Random(f"boe/sudoku/solved/{seed}")
    return torch.tensor([random_solved_grid(rng) for _ in range(count)], dtype=torch.int64)


def augment(grids: Tensor, generator: torch.Generator) -> Tensor:
    """Apply an independent random Sudoku symmetry to each grid.

    Digits are relabelled, bands, stacks and the rows and columns within them are
    permuted, and half of the grids are transposed: all 3,359,232 · 9! symmetries.

    Args:
        grids: int64 (N, 81), solved grids with digits 1-9.
    """
    count = grids.shape[0]

    def permutations(size: int, groups: int = 1) -> Tensor:
        return torch.rand(count, groups, size, generator=generator).argsort(dim=-1)

    def line_order() -> Tensor:
        bands = permutations(3)[:, 0]
        within = permutations(3, groups=3)
        return (bands.unsqueeze(-1) * 3 + within).reshape(count, 9)

    labels = permutations(9)[:, 0] + 1
    square = labels.gather(1, grids - 1).reshape(count, 9, 9)
    square = square.gather(1, line_order().unsqueeze(-1).expand(-1, -1, 9))
    square = square.gather(2, line_order().unsqueeze(1).expand(-1, 9, -1))
    flip = (torch.rand(count, generator=generator) < 0.5).view(count, 1, 1)
    return torch.where(flip, square.transpose(1, 2), square).reshape(count, CELLS)


def symmetry_signature(grid: Grid) -> int:
    """A 63-bit number that all symmetric forms of a solved grid share.

    For two rows of one band, the digits of the first mapped to the digits below
    them form a permutation of nine digits; its cycle type does not change under
    relabelling or column permutations. The multiset of these over bands, for rows
    and for columns, is invariant under the whole symmetry group.
    """
    square = [grid[r * 9 : r * 9 + 9] for r in range(9)]

    def side(lines: list[tuple[int, ...]]) -> tuple:
        bands = []
        for band in range(3):
            a, b, c = lines[band * 3 : band * 3 + 3]
            bands.append(tuple(sorted((_cycle_type(a, b), _cycle_type(b, c), _cycle_type(a, c)))))
        return tuple(sorted(bands))

    columns = [tuple(line) for line in zip(*square, strict=True)]
    sides = sorted((side([tuple(line) for line in square]), side(columns)))
    digest = hashlib.blake2b(repr(sides).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _cycle_type(source: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    step = dict(zip(source, target, strict=True))
    lengths = []
    while step:
        start, digit = step.popitem()
        length = 1
        while digit != start:
            digit = step.pop(digit)
            length += 1
        lengths.append(length)
    return tuple(sorted(lengths))


def dig(solution: Grid, clues: int, rng: random.Random) -> Puzzle | None:
    """Remove cells from ``solution`` until ``clues`` remain and the solution stays unique.

    Returns ``None`` when this random order gets stuck before reaching ``clues``.
    """
    cells = list(solution)
    remaining = CELLS
    for cell in rng.sample(range(CELLS), CELLS):
        if remaining == clues:
            break
        digit = cells[cell]
        cells[cell] = 0
        found = solutions(cells)
        next(found)
        if next(found, None) is None:
            remaining -= 1
        else:
            cells[cell] = digit
    return Puzzle(tuple(cells), solution) if remaining == clues else None


def generate_puzzles(
    difficulty: str, seed: int, excluded: frozenset[int] = frozenset()
) -> Iterator[Puzzle]:
    """An endless stream of puzzles of one named difficulty.

    Args:
        difficulty: a key of :data:`DIFFICULTIES`.
        seed: equal seeds give equal streams.
        excluded: symmetry signatures (:func:`symmetry_signature`) of grids not to be used.
    """
    _check_difficulty(difficulty)
    rng = random.Random(f"boe/sudoku/{difficulty}/{seed}")
    while True:
        solution = random_solved_grid(rng)
        if symmetry_signature(solution) in excluded:
            continue
        if (puzzle := _puzzle_from(solution, difficulty, rng)) is not None:
            yield puzzle


def puzzles_of(grids: Tensor, difficulty: str, seed: int) -> Iterator[Puzzle]:
    """An endless stream of puzzles made from random symmetries of ``grids`` (N, 81)."""
    _check_difficulty(difficulty)
    rng = random.Random(f"boe/sudoku/validation/{difficulty}/{seed}")
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    while True:
        base = grids[torch.randint(len(grids), (1,), generator=generator)]
        solution = tuple(augment(base, generator)[0].tolist())
        if (puzzle := _puzzle_from(solution, difficulty, rng)) is not None:
            yield puzzle


@cache
def validation_grids(excluded: frozenset[int]) -> Tensor:
    """The solved grids that validation puzzles are symmetric forms of, int64 (N, 81).

    Args:
        excluded: symmetry signatures of grids not to be used, those of training.
    """
    rng = random.Random("boe/sudoku/validation")
    drawn = [random_solved_grid(rng) for _ in range(VALIDATION_GRIDS)]
    return torch.tensor([grid for grid in drawn if symmetry_signature(grid) not in excluded])


@cache
def validation_signatures() -> frozenset[int]:
    """Symmetry signatures of the validation grids; test puzzles have others."""
    grids = validation_grids(frozenset()).tolist()
    return frozenset(symmetry_signature(tuple(grid)) for grid in grids)


def _check_difficulty(difficulty: str) -> None:
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty must be one of {', '.join(DIFFICULTIES)}, got {difficulty!r}")


def _puzzle_from(solution: Grid, difficulty: str, rng: random.Random) -> Puzzle | None:
    clues = DIFFICULTIES[difficulty]
    if difficulty != "open":
        return dig(solution, clues, rng)
    shown = set(rng.sample(range(CELLS), clues))
    return Puzzle(tuple(d if c in shown else 0 for c, d in enumerate(solution)), solution)
