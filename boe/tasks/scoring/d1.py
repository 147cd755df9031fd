"""Reading d1's test items, in the files of its repository."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SudokuProblem:
    """A 4×4 puzzle, 16 digits with 0 for empty, and its solution."""

    puzzle: str
    solution: str


@dataclass(frozen=True)
class CountdownProblem:
    """Numbers to be used once each, and the value to reach."""

    numbers: tuple[int, ...]
    target: int


def read_sudoku(path: Path) -> list[SudokuProblem]:
    """Problems of ``4x4_test_sudoku.csv``.

    Raises:
        ValueError: a row is no puzzle with its solution; the message gives the line.
    """
    problems = []
    with path.open(newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            puzzle, solution = row.get("Puzzle") or "", row.get("Solution") or ""
            fits = all(clue in ("0", cell) for clue, cell in zip(puzzle, solution, strict=False))
            if len(puzzle) != 16 or len(solution) != 16 or not fits:
                raise ValueError(f"line {line} of {path} must be a puzzle and its solution")
            problems.append(SudokuProblem(puzzle, solution))
    return problems


def read_countdown(path: Path) -> list[CountdownProblem]:
    """Problems of ``countdown_cd3_test.jsonl``.

    Raises:
        ValueError: a line is no problem; the message gives its number.
    """
    problems = []
    for line, text in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not text:
            continue
        try:
            item = json.loads(text)
            numbers = tuple(int(number) for number in item["input"].split(","))
            problems.append(CountdownProblem(numbers, int(item["output"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"line {line} of {path} must hold input and output") from error
    return problems
