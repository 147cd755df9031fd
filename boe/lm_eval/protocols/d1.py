"""The protocol of d1 (Zhao et al., 2025): items, instructions and scoring.

d1 asks zero-shot, in one user message, and opens the answer with ``<reasoning>``. Its
instructions are not part of this package: those below say the same in our own words, so
figures are comparable with each other, but only nearly with published ones. Put d1's own
texts (Apache-2.0, github.com/dllm-reasoning/d1) in a folder as ``gsm8k.txt``,
``math500.txt``, ``countdown.txt`` and ``sudoku.txt``, and give it as ``d1_prompts``.
How items are written ("Numbers: …", "Solve the following Sudoku puzzle: …") is d1's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from boe.lm_eval.protocols.sources import as_test_set, instruction, local_file, rows
from boe.tasks.scoring.countdown import d1_countdown
from boe.tasks.scoring.d1 import read_countdown, read_sudoku
from boe.tasks.scoring.gsm8k import d1_gsm8k
from boe.tasks.scoring.math500 import d1_math500
from boe.tasks.scoring.sudoku4 import cell_accuracy, extract_grid

SUDOKU_ITEMS, SUDOKU_SEED = 256, 42

_LAYOUT = """Answer in this layout:
<reasoning>
your reasoning
</reasoning>
<answer>
{answer}
</answer>"""
_MATHS = """You are an expert in mathematics. Solve the problem step by step, and write the \
final answer in \\boxed{}.
""" + _LAYOUT.format(answer="\\boxed{your answer}")
_COUNTDOWN = """Make an arithmetic expression of the given numbers that has the target as its \
value. You may use +, -, * and /, and must use each number exactly once. Write the expression \
alone in \\boxed{}, without an equals sign.
""" + _LAYOUT.format(answer="\\boxed{your expression}")
_SUDOKU = """Solve a 4x4 Sudoku. It is written as 16 characters, from left to right and from \
top to bottom, with 0 for an empty cell. Each row, each column and each 2x2 box must hold the \
digits 1 to 4 once. Answer with all 16 digits of the solved grid.
""" + _LAYOUT.format(answer="the 16 digits")


def gsm8k(
    d1_data: str | None = None, d1_prompts: str | None = None, **others: Any
) -> dict[str, Dataset]:
    """GSM8K's test items, of ``gsm8k.jsonl`` in ``d1_data`` or of the Hub."""
    head = instruction(d1_prompts, "gsm8k", _MATHS)
    items = rows(d1_data, "gsm8k.jsonl", ("openai/gsm8k", "main"))
    return as_test_set(
        [
            {
                "prompt": f"{head}\n\n{item['question']}",
                "truth": item["answer"].rpartition("####")[2].strip().replace(",", ""),
            }
            for item in items
        ]
    )


def math500(
    d1_data: str | None = None, d1_prompts: str | None = None, **others: Any
) -> dict[str, Dataset]:
    """MATH-500, of ``math500.jsonl`` in ``d1_data`` or of the Hub."""
    head = instruction(d1_prompts, "math500", _MATHS)
    items = rows(d1_data, "math500.jsonl", ("HuggingFaceH4/MATH-500",))
    return as_test_set(
        [{"prompt": f"{head}\n\n{item['problem']}", "truth": item["answer"]} for item in items]
    )


def countdown(
    d1_data: str | None = None, d1_prompts: str | None = None, **others: Any
) -> dict[str, Dataset]:
    """d1's 256 problems, of ``countdown_cd3_test.jsonl`` in ``d1_data``."""
    head = instruction(d1_prompts, "countdown", _COUNTDOWN)
    problems = read_countdown(local_file(d1_data, "d1_data", "countdown_cd3_test.jsonl"))
    return as_test_set(
        [
            {
                "prompt": f"{head}\n\nNumbers: {list(problem.numbers)}\nTarget: {problem.target}",
                "numbers": list(problem.numbers),
                "truth": problem.target,
            }
            for problem in problems
        ]
    )


def sudoku(
    d1_data: str | None = None, d1_prompts: str | None = None, **others: Any
) -> dict[str, Dataset]:
    """The 256 of the 500 puzzles in ``4x4_test_sudoku.csv`` that d1 evaluates."""
    head = instruction(d1_prompts, "sudoku", _SUDOKU)
    problems = read_sudoku(local_file(d1_data, "d1_data", "4x4_test_sudoku.csv"))
    if len(problems) > SUDOKU_ITEMS:
        # The legacy generator is d1's; it decides which items these are.
        drawn = np.random.RandomState(SUDOKU_SEED)
        chosen = drawn.choice(len(problems), SUDOKU_ITEMS, replace=False)
        problems = [problems[k] for k in chosen]
    return as_test_set(
        [
            {
                "prompt": f"{head}\n\nSolve the following Sudoku puzzle: {problem.puzzle}\n",
                "puzzle": problem.puzzle,
                "truth": problem.solution,
            }
            for problem in problems
        ]
    )


def score_gsm8k(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"acc": float(d1_gsm8k(results[0], float(doc["truth"])))}


def score_math500(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"acc": float(d1_math500(results[0], doc["truth"]))}


def score_countdown(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"acc": float(d1_countdown(results[0], doc["numbers"], doc["truth"]))}


def score_sudoku(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """d1's figure, the share of empty cells that are right, and the share of solved grids."""
    answer = extract_grid(results[0])
    share = cell_accuracy(doc["puzzle"], doc["truth"], answer)
    return {"blank_cells": share, "acc": float(answer == doc["truth"])}
