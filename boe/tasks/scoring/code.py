"""HumanEval and MBPP: does the written function pass its tests?"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from boe.tasks.scoring.sandbox import Execution, SandboxLimits, run_program


@dataclass(frozen=True)
class HumanEvalProblem:
    """A problem of HumanEval (Chen et al. 2021).

    Attributes:
        prompt: imports, signature and docstring of the function.
        test: source that defines ``check(candidate)``.
        entry_point: the function's name.
    """

    prompt: str
    test: str
    entry_point: str


@dataclass(frozen=True)
class MbppProblem:
    """A problem of MBPP (Austin et al. 2021): ``tests`` are assert statements, to be run
    after ``setup``."""

    tests: tuple[str, ...]
    setup: str = ""


def extract_code(generation: str) -> str:
    """The program in a generation.

    The first fenced block that parses, else the longest beginning of the text, in whole
    lines, that parses; the empty string if nothing does.
    """
    text = re.split(r"<\|eot_id\|>|<\|endoftext\|>|</answer>", generation)[0]
    for block in re.findall(r"```(?:[a-zA-Z]*\n)?(.*?)(?:```|$)", text, re.DOTALL):
        if block.strip() and _parses(block):
            return block
    lines = text.split("\n")
    for end in range(len(lines), 0, -1):
        beginning = "\n".join(lines[:end])
        if beginning.strip() and _parses(beginning):
            return beginning
    return ""


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _defines(source: str, name: str) -> bool:
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        for node in ast.parse(source).body
    )


def humaneval_program(problem: HumanEvalProblem, generation: str) -> str:
    """The program that tests a generation.

    A generation that defines the function stands on its own behind the prompt's imports;
    any other is taken as the function's body, continuing the prompt, and cut where it no
    longer parses.
    """
    code = extract_code(generation)
    if not (code and _defines(code, problem.entry_point)):
        code = extract_code(problem.prompt + generation)
    else:
        code = f"{problem.prompt}    pass\n\n{code}"
    return f"{code}\n\n{problem.test}\n\ncheck({problem.entry_point})\n"


def mbpp_program(problem: MbppProblem, generation: str) -> str:
    """The program that tests a generation."""
    return "\n\n".join((extract_code(generation), problem.setup, *problem.tests)) + "\n"


def score_humaneval(
    problem: HumanEvalProblem,
    generation: str,
    *,
    allow_execution: bool = False,
    limits: SandboxLimits | None = None,
) -> Execution:
    """Run the problem's tests on a generation; off unless ``allow_execution`` is True.

    Raises:
        PermissionError: ``allow_execution`` is not True.
    """
    program = humaneval_program(problem, generation)
    return run_program(program, allow_execution=allow_execution, limits=limits)


def score_mbpp(
    problem: MbppProblem,
    generation: str,
    *,
    allow_execution: bool = False,
    limits: SandboxLimits | None = None,
) -> Execution:
    """Run the problem's tests on a generation; off unless ``allow_execution`` is True.

    Raises:
        PermissionError: ``allow_execution`` is not True.
    """
    program = mbpp_program(problem, generation)
    return run_program(program, allow_execution=allow_execution, limits=limits)
