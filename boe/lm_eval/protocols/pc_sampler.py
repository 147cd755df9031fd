"""The protocol of PC-Sampler (Huang et al., 2025): items, instructions, shots and scoring.

Its few-shot texts are not part of this package. Ours have the same form (number of shots,
grids as four lines, the reference's signature for MBPP …) with examples of our own, so
figures are comparable with each other, but only nearly with published ones. A folder with
PC-Sampler's own texts (all that stands before the item) as ``sudoku.txt``,
``countdown.txt``, ``math500.txt``, ``humaneval.txt`` and ``mbpp.txt`` can be given as
``pc_prompts``. GSM8K is lm-eval's own ``gsm8k`` with ``--num_fewshot 4``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from datasets import Dataset

from boe.lm_eval.protocols.sources import as_test_set, instruction, local_file, rows
from boe.tasks.countdown.task import CountdownTask
from boe.tasks.scoring.code import HumanEvalProblem, MbppProblem, score_mbpp
from boe.tasks.scoring.d1 import read_sudoku
from boe.tasks.scoring.pc_sampler import pc_countdown, pc_humaneval, pc_math500, pc_sudoku
from boe.tasks.sudoku4.task import Sudoku4Task

_MBPP_SPLITS = ("prompt", "train", "validation", "test")
_SUDOKU = """Solve the 4x4 Sudoku puzzles. 0 is an empty cell. Each row, each column and each \
2x2 box must hold the digits 1 to 4 once. Answer with the four lines of the solved grid."""
_COUNTDOWN = """Reach the target with the given numbers, using each once and the operations \
+, -, * and /."""
_MATHS = """Solve the problems step by step, and put the final answer in \\boxed{}."""
_MATHS_SHOTS = (
    ("What is the sum of the first five odd numbers?", "1 + 3 + 5 + 7 + 9 = 25.", "25"),
    (
        "A rectangle is 3 long and 4 wide. How long is its diagonal?",
        "By Pythagoras' theorem it is $\\sqrt{3^2 + 4^2} = \\sqrt{25} = 5$.",
        "5",
    ),
    (
        "Solve $2x - 3 = 8$ for $x$.",
        "Adding 3 gives $2x = 11$, so $x = \\frac{11}{2}$.",
        "\\frac{11}{2}",
    ),
    (
        "Two fair coins are tossed. What is the probability of exactly one head?",
        "Of four equally likely outcomes two have one head: $\\frac{2}{4} = \\frac{1}{2}$.",
        "\\frac{1}{2}",
    ),
)
_HUMANEVAL = """You are an expert Python programmer. Complete the function below. Answer with \
the whole function in a Python code block."""
_MBPP = """You are an expert Python programmer. Write the function that is asked for. Answer \
with it alone, in a Python code block."""


def sudoku(
    pc_data: str | None = None, pc_prompts: str | None = None, **others: Any
) -> dict[str, Dataset]:
    """The 500 puzzles of ``4x4_test_sudoku.csv``, 5-shot; shots are training puzzles of ours."""
    shots = [
        f"Puzzle:\n{_grid(item.data.prompt[:16])}\n<answer>\n{_grid(item.data.reference)}\n</answer>"
        for item in Sudoku4Task("d1").items(5, seed=0, split="train")
    ]
    head = instruction(pc_prompts, "sudoku", "\n\n".join((_SUDOKU, *shots)))
    problems = read_sudoku(local_file(pc_data, "pc_data", "4x4_test_sudoku.csv"))
    return as_test_set(
        [
            {"prompt": f"{head}\n\nPuzzle:\n{_grid(problem.puzzle)}", "truth": problem.solution}
            for problem in problems
        ]
    )


def countdown(
    pc_data: str | None = None, pc_prompts: str | None = None, **others: Any
) -> dict[str, Dataset]:
    """Problems with their reference solutions, 3-shot.

    Of ``countdown.jsonl`` in ``pc_data``, objects with ``numbers``, ``target`` and
    ``reference``; PC-Sampler's own 1000 problems have to be brought into this form.
    """
    shots = []
    for item in CountdownTask("medium").items(3, seed=0, split="train"):
        given, _, _ = item.data.prompt.partition(":")
        numbers, _, target = given.partition("=")
        shots.append(_countdown_item(numbers.split(","), target, item.data.reference.rstrip(".")))
    head = instruction(pc_prompts, "countdown", "\n\n".join((_COUNTDOWN, *shots)))
    local_file(pc_data, "pc_data", "countdown.jsonl")
    return as_test_set(
        [
            {
                "prompt": f"{head}\n\n{_countdown_item(item['numbers'], item['target'])}",
                "truth": item["reference"],
            }
            for item in rows(pc_data, "countdown.jsonl", ())
        ]
    )


def math500(
    pc_data: str | None = None, pc_prompts: str | None = None, **others: Any
) -> dict[str, Dataset]:
    """MATH-500, of ``math500.jsonl`` in ``pc_data`` or of the Hub, 4-shot."""
    shots = [
        f"Problem: {problem}\nSolution: {solution} The answer is \\boxed{{{answer}}}."
        for problem, solution, answer in _MATHS_SHOTS
    ]
    head = instruction(pc_prompts, "math500", "\n\n".join((_MATHS, *shots)))
    items = rows(pc_data, "math500.jsonl", ("HuggingFaceH4/MATH-500",))
    return as_test_set(
        [
            {"prompt": f"{head}\n\nProblem: {item['problem']}\nSolution:", "truth": item["answer"]}
            for item in items
        ]
    )


def humaneval(
    pc_data: str | None = None, pc_prompts: str | None = None, **others: Any
) -> dict[str, Dataset]:
    """HumanEval, of ``humaneval.jsonl`` in ``pc_data`` or of the Hub."""
    head = instruction(pc_prompts, "humaneval", _HUMANEVAL)
    items = rows(pc_data, "humaneval.jsonl", ("openai/openai_humaneval",))
    return as_test_set(
        [
            {
                "prompt": f"{head}\n\n```python\n{item['prompt']}\n```\n",
                "source": item["prompt"],
                "truth": item["test"],
                "entry_point": item["entry_point"],
            }
            for item in items
        ]
    )


def mbpp(
    pc_data: str | None = None, pc_prompts: str | None = None, **others: Any
) -> dict[str, Dataset]:
    """The 427 problems of sanitized MBPP, of ``mbpp.jsonl`` in ``pc_data`` or of the Hub."""
    head = instruction(pc_prompts, "mbpp", _MBPP)
    hub = ("google-research-datasets/mbpp", "sanitized")
    return as_test_set(
        [
            {
                "prompt": f"{head}\n\n{item['prompt']}\nSignature: {signature(item['code'])}\n",
                "tests": list(item["test_list"]),
                "truth": "\n".join(item.get("test_imports") or []),
            }
            for item in rows(pc_data, "mbpp.jsonl", hub, _MBPP_SPLITS)
        ]
    )


def signature(code: str) -> str:
    """The first line of the last function in a reference solution.

    Raises:
        ValueError: it defines none.
    """
    functions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    if not functions:
        raise ValueError(f"the reference defines no function: {code[:80]!r}")
    return f"def {functions[-1].name}({ast.unparse(functions[-1].args)}):"


def score_sudoku(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"acc": float(pc_sudoku(results[0], doc["truth"]))}


def score_countdown(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"acc": float(pc_countdown(results[0], doc["truth"]))}


def score_math500(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"acc": float(pc_math500(results[0], doc["truth"]))}


def score_humaneval(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Runs the answer in the sandbox; lm-eval asks for ``--confirm_run_unsafe_code`` before."""
    problem = HumanEvalProblem(doc["source"], doc["truth"], doc["entry_point"])
    return {"acc": float(pc_humaneval(problem, results[0], allow_execution=True).passed)}


def score_mbpp_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Runs the answer in the sandbox; lm-eval asks for ``--confirm_run_unsafe_code`` before."""
    problem = MbppProblem(tuple(doc["tests"]), doc["truth"])
    return {"acc": float(score_mbpp(problem, results[0], allow_execution=True).passed)}


def _grid(cells: str) -> str:
    return "\n".join(cells[row : row + 4] for row in range(0, 16, 4))


def _countdown_item(numbers: Iterable[Any], target: Any, solution: str | None = None) -> str:
    given = ", ".join(str(number).strip() for number in numbers)
    answer = "" if solution is None else f" {solution}"
    return f"Numbers: {given}\nTarget: {str(target).strip()}\nSolution:{answer}"
