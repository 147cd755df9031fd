"""All solvable Countdown problems of three numbers, with canonical solutions.

Of the expressions that differ only by commuting operands or by order of the same sums
and products, one is kept: the larger operand first, products before sums, additions
before subtractions, multiplications before divisions. What remains are different ways
to the target.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

LARGEST_TARGET = 99

FORMS = (
    "a+b+c",
    "a+b-c",
    "a-b-c",
    "a*b+c",
    "a*b-c",
    "c-a*b",
    "a/b+c",
    "a/b-c",
    "c-a/b",
    "a*b*c",
    "a*b/c",
    "a/b/c",
    "(a+b)*c",
    "(a-b)*c",
    "(a+b)/c",
    "(a-b)/c",
    "c/(a+b)",
    "c/(a-b)",
)
ADDITIVE_FORMS = 3
"""The first forms have sums and differences only."""


@cache
def expression_table(largest: int) -> Tensor:
    """Every canonical expression over numbers from 1 to ``largest``, int64 (N, 5).

    Columns are a, b, c, the index into :data:`FORMS` and the value, an integer from 1 to
    99. Intermediate results are whole numbers, and not negative.
    """
    numbers = torch.arange(1, largest + 1)
    a, b, c = (x.flatten() for x in torch.meshgrid(numbers, numbers, numbers, indexing="ij"))
    product, total, difference = a * b, a + b, a - b
    ordered, descending = a >= b, (a >= b) & (b >= c)
    exact = (a % b == 0) & (b > 1)
    apart = difference.clamp_min(1)
    # Values and conditions in the order of FORMS. Division by 1 equals multiplication by it.
    forms = (
        (total + c, descending),
        (total - c, ordered & (a != c) & (b != c)),
        (difference - c, (difference >= 0) & (b >= c)),
        (product + c, ordered),
        (product - c, ordered),
        (c - product, ordered),
        (a // b + c, exact),
        (a // b - c, exact),
        (c - a // b, exact),
        (product * c, descending),
        (product // c, ordered & (product % c == 0) & (c > 1) & (a != c) & (b != c)),
        (a // b // c, exact & (a // b % c == 0) & (b >= c) & (c > 1)),
        (total * c, ordered & (c > 1)),
        (difference * c, (difference > 0) & (c > 1)),
        (total // c, ordered & (total % c == 0) & (c > 1)),
        (difference // c, (difference > 0) & (difference % c == 0) & (c > 1)),
        (c // total, ordered & (c % total == 0)),
        (c // apart, (difference > 1) & (c % apart == 0)),
    )
    rows = []
    for index, (value, allowed) in enumerate(forms):
        kept = allowed & (value >= 1) & (value <= LARGEST_TARGET)
        form = torch.full_like(a, index)
        rows.append(torch.stack((a, b, c, form, value), dim=1)[kept])
    return torch.cat(rows)


def problem_key(numbers: Tensor, targets: Tensor) -> Tensor:
    """One integer per problem, whatever the order of its numbers (N, 3); int64 (N,)."""
    first, second, third = numbers.sort(dim=1).values.unbind(1)
    return ((first * 128 + second) * 128 + third) * 128 + targets


def expression_text(a: int, b: int, c: int, form: int) -> str:
    """An expression of the table as text."""
    return FORMS[form].translate({ord("a"): str(a), ord("b"): str(b), ord("c"): str(c)})
