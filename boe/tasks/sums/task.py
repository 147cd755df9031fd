"""Restore the digits that are missing from a sum of two numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.tasks.base import Judgement
from boe.tasks.sums.columns import SumLayout
from boe.tasks.text.model import ModelShape
from boe.tasks.text.task import FILL, GIVEN, CharacterTask, TextProblem
from boe.tasks.text.vocabulary import DIGIT_ID, MASK_ID, encode
from boe.training import TrainConfig

MISSING = "."
"""Stands in a prompt for a digit that is missing."""


@dataclass(frozen=True)
class SumsDifficulty:
    """How many of a sum's digits are ``given``: of 13, or of 7 where numbers have two digits."""

    given: int

    def __post_init__(self) -> None:
        if self.given < 0:
            raise ValueError(f"given must not be negative, got {self.given}")


class SumsTask(CharacterTask[SumsDifficulty]):
    """Restore a sum of two numbers of four digits, of which some digits are missing.

    ``3.7.+..51=.43..:`` is answered by the whole sum, such as ``3872+0551=04423``: any sum
    that holds and keeps the given digits is right. Each column constrains three digits and
    hands a carry to the next, so digits that are written together must agree.

    ``kept`` is 1 if all given digits are kept, ``holds`` if the sum holds.
    """

    name = "sums"
    layout: ClassVar[SumLayout] = SumLayout(4)
    template = layout.text(GIVEN, FILL)
    difficulties: ClassVar[Mapping[str, SumsDifficulty]] = {
        "easy": SumsDifficulty(9),
        "medium": SumsDifficulty(6),
        "hard": SumsDifficulty(3),
    }
    training_mix = ("easy", "medium", "hard")
    shape = ModelShape(layers=3, width=128)
    recipe = TrainConfig(steps=8000, batch_size=128, learning_rate=2e-3)
    weights = Path(__file__).parent / "weights"

    def __init__(self, difficulty: str | SumsDifficulty = "hard") -> None:
        """Refuses a difficulty with no digit missing, by a ValueError."""
        super().__init__(difficulty)
        if self.difficulty.given >= self.layout.digits:
            raise ValueError(
                f"given must be below {self.layout.digits}, the number of digits, "
                f"got {self.difficulty.given}"
            )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Digits of the puzzle, −1 for missing, and of the sum, (N, 2 · digits)."""
        summands = torch.randint(10**self.layout.width, (count, 2), generator=generator)
        solutions = self.layout.of(summands)
        rank = torch.rand(solutions.shape, generator=generator).argsort(dim=1)
        puzzles = torch.where(rank < self.difficulty.given, solutions, -1)
        return torch.cat((puzzles, solutions), dim=1)

    def key(self, problems: Tensor) -> Tensor:
        """The puzzle in base 11."""
        puzzles = problems[:, : self.layout.digits]
        return ((puzzles + 1) * 11 ** torch.arange(self.layout.digits)).sum(dim=1)

    def render(self, problems: Tensor) -> Tensor:
        puzzles, solutions = problems.chunk(2, dim=1)
        asked = torch.where(puzzles < 0, encode(MISSING)[0], DIGIT_ID + puzzles)
        ids = torch.tensor(encode(self.layout.text("0", "0")))
        ids = ids.repeat(len(problems), 1)
        ids[:, self._places()] = torch.cat((asked, DIGIT_ID + solutions), dim=1)
        return ids

    def violated(self, canvas: Canvas) -> Tensor:
        """A digit that is none or changes a given one, or a sum that cannot be completed."""
        asked, ids = canvas.ids[:, self._places()].chunk(2, dim=1)
        clues, digits = asked - DIGIT_ID, ids - DIGIT_ID
        given = (clues >= 0) & (clues <= 9)
        written = ids != MASK_ID
        wrong = written & ((digits < 0) | (digits > 9) | (given & (digits != clues)))
        known = torch.where(written & ~wrong, digits, torch.where(given, clues, -1))
        return wrong.any(dim=1) | ~self.layout.has_completion(known)

    def check(self, problem: TextProblem, answer: str) -> Judgement:
        given = zip(problem.prompt.rstrip(":"), answer, strict=True)
        kept = all(clue in (MISSING, digit) for clue, digit in given)
        numbers = answer.replace("=", "+").split("+")
        whole = len(numbers) == 3 and all(number.isdigit() for number in numbers)
        holds = whole and int(numbers[0]) + int(numbers[1]) == int(numbers[2])
        return Judgement(kept and holds, {"kept": float(kept), "holds": float(holds)})

    @classmethod
    def _places(cls) -> Tensor:
        """Positions of the digits, of the puzzle and then of the answer."""
        return torch.tensor([place for place, c in enumerate(cls.template) if c in (GIVEN, FILL)])

    @classmethod
    def position_groups(cls) -> list[list[int]]:
        """Column, number, and puzzle or answer."""
        places = cls._places().tolist()
        groups = []
        for unit in (cls.layout.column, cls.layout.number):
            group = [max(unit) + 1] * len(cls.template)
            for place, member in zip(places, unit * 2, strict=True):
                group[place] = member
            groups.append(group)
        half = len(cls.template) // 2
        return [*groups, [0] * half + [1] + [2] * half]
