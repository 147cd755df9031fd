"""Solved grids, symmetries and puzzles."""

from __future__ import annotations

import random
from itertools import islice

import pytest
import torch

from boe.tasks.sudoku.grid import is_complete, unique_solution
from boe.tasks.sudoku.puzzles import (
    DIFFICULTIES,
    augment,
    dig,
    generate_puzzles,
    random_solved_grid,
    solved_grids,
    symmetry_signature,
)


def test_solved_grids_are_complete_different_and_fixed_by_their_seed() -> None:
    grids = solved_grids(12, 3)
    assert grids.dtype == torch.int64
    assert all(is_complete(grid) for grid in grids.tolist())
    assert len({tuple(grid) for grid in grids.tolist()}) == 12
    assert torch.equal(grids, solved_grids(12, 3))
    assert not torch.equal(grids, solved_grids(12, 4))


def test_augmented_grids_stay_valid_change_and_follow_their_generator() -> None:
    grids = solved_grids(6, 0).repeat(20, 1)
    moved = augment(grids, torch.Generator().manual_seed(1))
    assert all(is_complete(grid) for grid in moved.tolist())
    assert len({tuple(grid) for grid in moved.tolist()}) == 120
    assert torch.equal(moved, augment(grids, torch.Generator().manual_seed(1)))


def test_the_signature_is_invariant_under_every_symmetry() -> None:
    grids = solved_grids(6, 0)
    signatures = [symmetry_signature(tuple(grid)) for grid in grids.tolist()]
    for seed in range(5):
        moved = augment(grids, torch.Generator().manual_seed(seed))
        assert [symmetry_signature(tuple(grid)) for grid in moved.tolist()] == signatures


def test_the_signature_tells_most_grids_apart() -> None:
    signatures = {symmetry_signature(tuple(grid)) for grid in solved_grids(60, 5).tolist()}
    assert len(signatures) > 50
    assert all(0 <= signature < 2**63 for signature in signatures)


@pytest.mark.parametrize("difficulty", [name for name in DIFFICULTIES if name != "open"])
def test_puzzles_have_exactly_one_solution_and_the_number_of_clues(difficulty: str) -> None:
    for puzzle in islice(generate_puzzles(difficulty, 5), 3):
        assert unique_solution(puzzle.clues) == puzzle.solution
        assert 81 - puzzle.blanks == DIFFICULTIES[difficulty]


def test_open_puzzles_show_cells_of_a_solved_grid() -> None:
    for puzzle in islice(generate_puzzles("open", 5), 3):
        assert is_complete(puzzle.solution)
        assert 81 - puzzle.blanks == 20
        pairs = zip(puzzle.clues, puzzle.solution, strict=True)
        assert all(clue in (0, digit) for clue, digit in pairs)


def test_equal_seeds_give_equal_streams_and_other_seeds_others() -> None:
    first = list(islice(generate_puzzles("easy", 1), 3))
    assert first == list(islice(generate_puzzles("easy", 1), 3))
    assert first[0] != next(generate_puzzles("easy", 2))
    assert len(set(first)) == 3


def test_excluded_grids_are_skipped() -> None:
    stream = list(islice(generate_puzzles("open", 7), 4))
    banned = symmetry_signature(stream[1].solution)
    kept = list(islice(generate_puzzles("open", 7, frozenset({banned})), 3))
    assert banned not in {symmetry_signature(puzzle.solution) for puzzle in kept}
    assert kept[0] == stream[0]


def test_digging_gives_up_where_no_unique_puzzle_is_reached() -> None:
    grid = random_solved_grid(random.Random(0))
    assert dig(grid, 16, random.Random(0)) is None  # 17 is the least there is
    puzzle = dig(grid, 60, random.Random(0))
    assert puzzle is not None
    assert puzzle.blanks == 21


def test_an_unknown_difficulty_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"difficulty must be one of easy, .*got 'cruel'"):
        next(generate_puzzles("cruel", 0))
