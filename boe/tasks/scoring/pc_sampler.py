"""PC-Sampler's rules (Huang et al. 2025), where they differ from d1's."""

from __future__ import annotations

import re

from boe.tasks.scoring.boxes import last_boxed
from boe.tasks.scoring.code import HumanEvalProblem, extract_code, humaneval_program
from boe.tasks.scoring.sandbox import Execution, SandboxLimits, run_program


def pc_countdown(generation: str, reference: str) -> bool:
    """The reference solution occurs in the output, white space aside.

    It misses every solution but the reference.
    """
    return _squeezed(reference) in _squeezed(generation)


def pc_sudoku(generation: str, solution: str) -> bool:
    """The answer is exactly the solved grid of 16 digits, as four lines.

    The prompt ends with an opened ``<answer>``, so the answer is all up to ``</answer>``;
    where a generation opens the element itself, all before that is left out.
    """
    answer = generation.partition("</answer>")[0].rpartition("<answer>")[2]
    lines = [solution[row : row + 4] for row in range(0, 16, 4)]
    return answer.split() == lines


def pc_math500(generation: str, truth: str) -> bool:
    """The true answer occurs in the last box, white space aside."""
    boxed = last_boxed(generation)
    return boxed is not None and _squeezed(truth) in _squeezed(boxed)


def pc_humaneval(
    problem: HumanEvalProblem,
    generation: str,
    *,
    allow_execution: bool = False,
    limits: SandboxLimits | None = None,
) -> Execution:
    """As :func:`boe.tasks.scoring.code.score_humaneval`, but the generation must define the
    function itself, and anything written to standard error is a failure.

    Raises:
        PermissionError: ``allow_execution`` is not True.
    """
    # The prompt's own function gets another name, so that only the generation's can be tested.
    renamed = HumanEvalProblem(
        re.sub(rf"\b{re.escape(problem.entry_point)}\b", "prompt_function", problem.prompt),
        problem.test,
        problem.entry_point,
    )
    program = humaneval_program(renamed, extract_code(generation))
    execution = run_program(program, allow_execution=allow_execution, limits=limits)
    if execution.passed and execution.detail:
        return Execution("failed", execution.detail, execution.network)
    return execution


def _squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)
