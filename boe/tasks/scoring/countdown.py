"""Countdown by d1's rules."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence

from boe.tasks.scoring.boxes import last_boxed

TOLERANCE = 1e-5

_OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def expression_value(expression: str) -> float | None:
    """Value of an expression in integers, + − * / and parentheses; ``None`` if it is not one.

    Division by zero has no value. Nothing is ever executed.
    """
    if not re.fullmatch(r"[\d+\-*/()\s]+", expression):
        return None
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    raise ValueError("not an expression of the four operations")


def is_solution(expression: str, numbers: Sequence[int], target: float) -> bool:
    """Whether ``expression`` uses each of ``numbers`` exactly once and has the value ``target``."""
    used = sorted(int(number) for number in re.findall(r"\d+", expression))
    if used != sorted(numbers):
        return False
    value = expression_value(expression)
    return value is not None and abs(value - target) < TOLERANCE


def extract_expression(generation: str) -> str:
    """The expression in a generation by d1's rule.

    The last balanced ``\\boxed{}``, else the text between ``<answer>`` and ``</answer>``,
    else all of it. TeX's signs are replaced, and of "expression = number", wherever it
    stands in that, the expression is taken.
    """
    text = last_boxed(generation)
    if text is None:
        element = re.search(r"<answer>(.*?)</answer>", generation, re.DOTALL)
        text = element.group(1).strip() if element else generation
    for tex, sign in ((r"\div", "/"), (r"\times", "*"), (r"\cdot", "*")):
        text = text.replace(tex, sign)
    equation = re.search(r"([0-9+\-*/() ]+)=[0-9. ]+", text)
    return (equation.group(1) if equation else text).strip()


def d1_countdown(generation: str, numbers: Sequence[int], target: float) -> bool:
    """Whether a generation solves the problem by d1's rule."""
    return is_solution(extract_expression(generation), numbers, target)
