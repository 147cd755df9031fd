"""Sudoku 4×4 by d1's rules: the share of empty cells that were filled in right."""

from __future__ import annotations

import re

CELLS = 16

# Where the grid stands, in d1's order of preference.
_PLACES = (
    r"<answer>.*?```\s*([\d\s]+)```",
    r"<answer>(.*?)(?:<\|eot_id\|>|<\|endoftext\|>|</answer>)",
    r"</answer>\s*(.*?)(?:<\|eot_id\|>|<\|endoftext\|>|$)",
    r".*?(\d{16})\s*</answer>",
    r"\b(\d{16})\b",
)


def extract_grid(generation: str) -> str:
    """The digits of the answer in a generation, 16 characters, padded with ``0`` or cut.

    The first place that matches counts, even if it holds no digit: a fenced block after
    ``<answer>``, the answer element, what follows it, 16 digits before its end, 16 digits
    standing alone.
    """
    for pattern in _PLACES:
        match = re.search(pattern, generation, re.DOTALL)
        if match and (found := match.group(1).strip()):
            digits = re.sub(r"\s", "", found)
            return digits.ljust(CELLS, "0")[:CELLS]
    return "0" * CELLS


def cell_accuracy(puzzle: str, solution: str, answer: str) -> float:
    """Share of the puzzle's empty cells (``0``) at which ``answer`` agrees with ``solution``.

    Raises:
        ValueError: a length is not 16, or the puzzle has no empty cell.
    """
    for name, text in (("puzzle", puzzle), ("solution", solution), ("answer", answer)):
        if len(text) != CELLS:
            raise ValueError(f"{name} must have {CELLS} characters, got {len(text)}")
    empty = [k for k, clue in enumerate(puzzle) if clue == "0"]
    if not empty:
        raise ValueError("puzzle must have an empty cell, got none")
    return sum(answer[k] == solution[k] for k in empty) / len(empty)
