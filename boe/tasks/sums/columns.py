"""The digits of a sum of two numbers, and the columns that bind them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class SumLayout:
    """The digits of ``a+b=c``, where a and b have ``width`` of them and c has one more.

    Attributes:
        number: per digit, 0 and 1 for the summands and 2 for the sum.
        column: per digit, 0 for units, 1 for tens and so on.
    """

    width: int

    @property
    def lengths(self) -> tuple[int, int, int]:
        return self.width, self.width, self.width + 1

    @property
    def digits(self) -> int:
        return sum(self.lengths)

    @property
    def number(self) -> list[int]:
        return [number for number, length in enumerate(self.lengths) for _ in range(length)]

    @property
    def column(self) -> list[int]:
        return [place for length in self.lengths for place in reversed(range(length))]

    def text(self, asked: str, answered: str) -> str:
        """A canvas, with one character for every digit of the question, one of the answer."""
        return ":".join(
            "{}+{}={}".format(*(digit * length for length in self.lengths))
            for digit in (asked, answered)
        )

    def of(self, summands: Tensor) -> Tensor:
        """Digits of two summands (N, 2) below 10^width, and of their sum, int64 (N, digits)."""
        numbers = torch.cat((summands, summands.sum(dim=1, keepdim=True)), dim=1)
        return numbers[:, self.number] // 10 ** torch.tensor(self.column) % 10

    def has_completion(self, digits: Tensor) -> Tensor:
        """Whether a sum of these digits exists, bool (N,).

        From the units on it follows which carries are possible out of each column.

        Args:
            digits: int64 (N, digits), −1 where any digit may stand.
        """
        first, second, total = digits.split(self.lengths, dim=1)
        columns = _possible_columns().to(digits.device)
        carries = torch.tensor([True, False], device=digits.device).expand(len(digits), 2)
        for place in range(1, self.width + 1):
            column = columns[first[:, -place], second[:, -place], total[:, -place]]
            carries = (carries.unsqueeze(2) & column).any(dim=1)
        top = total[:, :1]
        return (carries & ((top < 0) | (top == torch.arange(2, device=digits.device)))).any(dim=1)


@cache
def _possible_columns() -> Tensor:
    """bool (11, 11, 11, 2, 2): digits of a column, then carry in and out; −1 is any digit."""
    digit, carry = torch.arange(10), torch.arange(2)
    a, b, s, came, goes = torch.meshgrid(digit, digit, digit, carry, carry, indexing="ij")
    possible = a + b + came == s + 10 * goes
    for axis in range(3):
        possible = torch.cat((possible, possible.any(dim=axis, keepdim=True)), dim=axis)
    return possible
