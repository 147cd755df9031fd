"""d1's scoring rules: published figures from stored generations, and cases made by hand."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from boe.tasks.scoring.boxes import last_boxed
from boe.tasks.scoring.countdown import (
    d1_countdown,
    expression_value,
    extract_expression,
    is_solution,
)
from boe.tasks.scoring.d1 import CountdownProblem, SudokuProblem, read_countdown, read_sudoku
from boe.tasks.scoring.gsm8k import d1_gsm8k, extract_number
from boe.tasks.scoring.math500 import d1_math500, extract_answer, is_equivalent, normalise
from boe.tasks.scoring.sudoku4 import cell_accuracy, extract_grid

STORED = Path(__file__).parents[1] / "data" / "d1" / "generations_256.json.xz"


@cache
def stored() -> dict[str, list[dict[str, Any]]]:
    return json.loads(lzma.decompress(STORED.read_bytes()))


# --- the figures of the stored generations ----------------------------------------------


def test_gsm8k_has_the_published_figure() -> None:
    rows = stored()["gsm8k"]
    assert len(rows) == 1130
    assert sum(d1_gsm8k(row["generation"], row["truth"]) for row in rows) == 863  # 76.4 %


def test_math500_has_the_published_figure() -> None:
    rows = stored()["math500"]
    assert len(rows) == 500
    assert sum(d1_math500(row["generation"], row["truth"]) for row in rows) == 162  # 32.4 %


def test_countdown_has_the_published_figure() -> None:
    rows = stored()["countdown"]
    assert len(rows) == 256
    assert sum(d1_countdown(row["generation"], *row["truth"]) for row in rows) == 50  # 19.5 %


def test_sudoku_has_the_published_figure_of_cells_and_no_solved_grid() -> None:
    rows = stored()["sudoku"]
    assert len(rows) == 256
    answers = [extract_grid(row["generation"]) for row in rows]
    shares = [
        cell_accuracy(row["puzzle"], row["truth"], answer)
        for row, answer in zip(rows, answers, strict=True)
    ]
    assert sum(shares) / len(shares) == pytest.approx(0.0669, abs=5e-5)
    assert all(answer != row["truth"] for row, answer in zip(rows, answers, strict=True))


# --- boxes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{3} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed 42$ is it", "42"),
        (r"\fbox{7}", "7"),
        (r"\boxed{never closed", None),
        ("no box", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_box_counts_with_its_braces_balanced(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


# --- GSM8K ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "number"),
    [
        (r"\boxed{18}", 18),
        (r"\boxed{...} then \boxed{18} then \boxed{19}", 18),
        (r"\boxed{} \boxed{-2.5 dollars of 7}", -2.5),
        (r"\boxed{about} <answer>3 or 4</answer>", 4),
        (r"\boxed{1,200}", 1),  # d1 reads thousands so
        ("<answer>12", None),
        ("the answer is 12", None),
    ],
)
def test_gsm8k_reads_the_first_box_with_a_number_else_the_last_number_of_the_answer(
    generation: str, number: float | None
) -> None:
    assert extract_number(generation) == number


def test_gsm8k_compares_as_numbers() -> None:
    assert d1_gsm8k(r"\boxed{18.0}", 18)
    assert not d1_gsm8k(r"\boxed{18.1}", 18)
    assert not d1_gsm8k("nothing", 18)


# --- MATH-500 ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac12", r"\frac{1}{2}"),
        (r"\dfrac{1}{72}", r"\tfrac1{72}"),
        ("0.5", r"\frac{1}{2}"),
        (".5", r"1/2"),
        ("3/4", r"\frac{3}{4}"),
        (r"x=5", "5"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        (r"\$32", "32"),
        (r"50\%", "50"),
        (r"11\text{ cm}", "11"),
        (r"\sqrt2", r"\sqrt{2}"),
        (r"12\!,345", "12,345"),
        (r"{.5}", "{0.5}"),
    ],
)
def test_math_answers_that_differ_in_form_only_are_equal(one: str, other: str) -> None:
    assert is_equivalent(one, other), (normalise(one), normalise(other))


@pytest.mark.parametrize(
    ("one", "other"), [("2", "3"), (r"\frac{2}{4}", r"\frac{1}{2}"), ("area=5", "5"), ("a", "A")]
)
def test_math_answers_that_differ_in_more_are_not_equal(one: str, other: str) -> None:
    assert not is_equivalent(one, other)


def test_math_reads_the_last_box_else_the_answer_and_wants_one_of_them() -> None:
    assert extract_answer(r"<answer>3</answer> \boxed{4}") == "4"
    assert extract_answer("<answer> 3 </answer>") == "3"
    assert extract_answer("3") is None
    assert not d1_math500("3", "3")
    assert d1_math500(r"\boxed{1/2}", r"\frac12")
    assert is_equivalent(None, None)
    assert not is_equivalent(None, "1")


# --- Countdown --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1+2*3", 7),
        ("(1 + 2) * -3", -9),
        ("7/2", 3.5),
        ("1/0", None),
        ("2**3", None),
        ("7//2", None),
        ("1 +", None),
        ("__import__('os')", None),
        ("(" * 500 + "1" + ")" * 500, None),
        ("", None),
    ],
)
def test_expressions_of_the_four_operations_have_a_value_and_nothing_else_has(
    expression: str, value: float | None
) -> None:
    assert expression_value(expression) == value


def test_a_solution_uses_each_number_exactly_once_and_reaches_the_target() -> None:
    assert is_solution("(3+4)*5", [3, 4, 5], 35)
    assert is_solution("5/3*3", [5, 3, 3], 5)
    assert not is_solution("3+4*5", [3, 4, 5], 35)
    assert not is_solution("35", [3, 4, 5], 35)
    assert not is_solution("(3+4)*5+3-3", [3, 4, 5], 35)
    assert not is_solution("34+5", [3, 4, 5], 39)


@pytest.mark.parametrize(
    ("generation", "expression"),
    [
        (r"\boxed{1+2} \boxed{49 + 55 - 53 = 51}", "49 + 55 - 53"),
        (r"\boxed{6 \times 2 \div 3 \cdot 1}", "6 * 2 / 3 * 1"),
        ("<answer> 4*5 </answer>", "4*5"),
        ("4*5", "4*5"),
    ],
)
def test_the_expression_is_the_last_box_else_the_answer_else_everything(
    generation: str, expression: str
) -> None:
    assert extract_expression(generation) == expression


# --- Sudoku -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "grid"),
    [
        ("<answer>```\n1234 3412\n2143 4321```", "1234341221434321"),
        ("<answer>\n1234\n3412 </answer>", "1234341200000000"),
        ("<answer></answer>12343412214343219", "1234341221434321"),
        ("it is 1234341221434321 I think", "1234341221434321"),
        ("no idea", "0" * 16),
    ],
)
def test_the_grid_is_found_where_d1_looks_and_made_16_long(generation: str, grid: str) -> None:
    assert extract_grid(generation) == grid


def test_cell_accuracy_counts_empty_cells_only() -> None:
    puzzle, solution = "1234341221430000", "1234341221434321"
    assert cell_accuracy(puzzle, solution, solution) == 1
    assert cell_accuracy(puzzle, solution, "0" * 12 + "4312") == 0.5
    assert cell_accuracy(puzzle, solution, puzzle) == 0


def test_cell_accuracy_refuses_what_is_no_puzzle() -> None:
    with pytest.raises(ValueError, match="answer must have 16 characters, got 2"):
        cell_accuracy("0" * 16, "1" * 16, "12")
    with pytest.raises(ValueError, match="puzzle must have an empty cell"):
        cell_accuracy("1" * 16, "1" * 16, "1" * 16)


# --- item files -------------------------------------------------------------------------


def test_the_item_files_are_read(tmp_path: Path) -> None:
    sudoku, countdown = tmp_path / "s.csv", tmp_path / "c.jsonl"
    sudoku.write_text("Puzzle,Solution\n3102200002100320,3142243142131324\n")
    countdown.write_text('{"input": "30,100,93", "output": "23"}\n')
    assert read_sudoku(sudoku) == [SudokuProblem("3102200002100320", "3142243142131324")]
    assert read_countdown(countdown) == [CountdownProblem((30, 100, 93), 23)]


def test_a_damaged_item_file_is_refused_with_the_line(tmp_path: Path) -> None:
    sudoku, countdown = tmp_path / "s.csv", tmp_path / "c.jsonl"
    sudoku.write_text("Puzzle,Solution\n3102200002100320,1142243142131324\n")
    countdown.write_text('{"input": "30,100,93", "output": "23"}\n{"input": "30"}\n')
    with pytest.raises(ValueError, match=r"line 2 of .* must be a puzzle"):
        read_sudoku(sudoku)
    with pytest.raises(ValueError, match=r"line 2 of .* must hold input"):
        read_countdown(countdown)
