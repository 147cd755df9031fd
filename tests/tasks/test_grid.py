"""Grids: parsing, rules and the exact solver."""

from __future__ import annotations

import random

import pytest

from boe.tasks.sudoku.grid import (
    CELLS,
    PEERS,
    UNITS,
    find_conflict,
    format_grid,
    is_complete,
    parse_grid,
    solutions,
    unique_solution,
)

# A. Inkala's puzzle of 2012, made to be hard for people and backtracking alike.
HARD = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."
SOLVED = "812753649943682175675491283154237896369845721287169534521974368438526917796318452"


def test_a_grid_has_27_units_and_every_cell_20_peers() -> None:
    assert len(UNITS) == 27
    assert all(len(set(unit)) == 9 for unit in UNITS)
    assert all(len(peers) == 20 and cell not in peers for cell, peers in enumerate(PEERS))


def test_empty_cells_may_be_written_three_ways_and_lines_broken() -> None:
    plain = parse_grid(HARD)
    assert plain == parse_grid(HARD.replace(".", "0")) == parse_grid(HARD.replace(".", "_"))
    lines = "\n".join(HARD[r * 9 : r * 9 + 9] for r in range(9)) + "\n"
    assert parse_grid(lines) == plain
    assert format_grid(plain) == HARD.replace(".", "0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a puzzle has 81 cells, got 0 characters"),
        (HARD[:-1], "a puzzle has 81 cells, got 80 characters"),
        (HARD + "1", "a puzzle has 81 cells, got 82 characters"),
        ("x" + HARD[1:], "cell 1 holds 'x': expected 1-9, or 0 . _ for empty"),
        (HARD[:80] + "²", "cell 81 holds '²'"),
        ("88" + HARD[2:], "contradicts itself: row 1 holds 8 twice"),
        (HARD[:9] + "8" + HARD[10:], "contradicts itself: column 1 holds 8 twice"),
        (HARD[:10] + "8" + HARD[11:], "contradicts itself: box 1 holds 8 twice"),
    ],
)
def test_a_text_that_is_no_puzzle_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_grid(text)


def test_the_solver_solves_a_known_hard_puzzle() -> None:
    assert format_grid(unique_solution(parse_grid(HARD))) == SOLVED


def test_a_solution_is_complete_and_nothing_else_is() -> None:
    solved = parse_grid(SOLVED)
    assert is_complete(solved)
    assert not is_complete((0, *solved[1:]))
    assert not is_complete((10, *solved[1:]))
    swapped = (solved[1], solved[0], *solved[2:])
    assert find_conflict(swapped) is not None
    assert not is_complete(swapped)


def test_all_completions_are_found_once_each() -> None:
    # Two rows and two columns that hold the same pair can be swapped: two completions.
    cells = list(parse_grid(SOLVED))
    pairs = [
        (a, b, c, d)
        for a in range(CELLS)
        for b in range(a + 1, a - a % 9 + 9)
        for c in range(a + 9, CELLS, 9)
        for d in [c + b - a]
        if cells[a] == cells[d] and cells[b] == cells[c] and (a // 27 == c // 27)
    ]
    a, b, c, d = pairs[0]
    for cell in (a, b, c, d):
        cells[cell] = 0
    found = list(solutions(cells))
    assert len(found) == len(set(found)) == 2
    assert parse_grid(SOLVED) in found
    assert all(is_complete(grid) for grid in found)
    with pytest.raises(ValueError, match="more than one solution"):
        unique_solution(cells)


def test_a_puzzle_without_a_solution_is_named() -> None:
    # No rule is broken yet, but cell 9 has no digit left.
    clues = [1, 2, 3, 4, 5, 6, 7, 8, 0, *[0] * 8, 9, *[0] * 63]
    assert find_conflict(clues) is None
    assert list(solutions(clues)) == []
    with pytest.raises(ValueError, match="no solution"):
        unique_solution(clues)


def test_random_search_finds_the_same_completions_in_another_order() -> None:
    assert next(solutions([0] * CELLS, random.Random(1))) != next(
        solutions([0] * CELLS, random.Random(2))
    )
    assert next(solutions([0] * CELLS, random.Random(1))) == next(
        solutions([0] * CELLS, random.Random(1))
    )
    assert list(solutions(parse_grid(HARD), random.Random(0))) == [parse_grid(SOLVED)]
