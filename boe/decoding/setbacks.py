"""What can go wrong with a step, and how many rows are decoded together after it."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

Failures = Literal["raise", "keep"]
FAILURES: tuple[Failures, ...] = ("raise", "keep")


class UnusableLogits(ValueError):
    """The model's logits of some rows are NaN or allow no token.

    Attributes:
        messages: what is wrong, by the row's place in the batch.
    """

    def __init__(self, messages: dict[int, str]) -> None:
        super().__init__(next(iter(messages.values())))
        self.messages = messages


@dataclass
class Room:
    """How many rows the device has the memory for, as far as is known.

    A batch that does not fit goes on in halves from the step that failed. Rows do not
    depend on each other, so that this changes no result; and no later batch of the same
    decode is larger.
    """

    rows: int | None = None

    def parts(self, count: int) -> list[range]:
        """The numbers below ``count`` in as few equal stretches as fit, longest first."""
        pieces = 1 if self.rows is None else -(-count // self.rows)
        size, larger = divmod(count, max(pieces, 1))
        starts = [k * size + min(k, larger) for k in range(pieces + 1)]
        return [range(start, end) for start, end in pairwise(starts)]

    def shrink(self, failed: int) -> None:
        """Note that ``failed`` rows, at least 2, did not fit, and free what can be freed."""
        self.rows = failed // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def check_failures(value: str) -> None:
    """Raises a ValueError unless ``value`` says what is done with failures."""
    if value not in FAILURES:
        raise ValueError(f"failures must be one of {', '.join(FAILURES)}, got {value!r}")


def alone(number: int, positions: int) -> str:
    """What is noted on an error of a sequence that does not fit even by itself."""
    return f"sequence {number}, of {positions} positions, does not fit by itself"
