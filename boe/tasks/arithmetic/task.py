"""Long multiplication by a number of two digits, written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from boe.tasks.base import Judgement
from boe.tasks.text.model import ModelShape
from boe.tasks.text.task import FILL, GIVEN, CharacterTask, TextProblem
from boe.tasks.text.vocabulary import DIGIT_ID, encode
from boe.training import TrainConfig

_DIGITS = 4
_PARTIAL = slice(8, 13)
_SHIFTED = slice(14, 19)
_PRODUCT = slice(21, 27)


@dataclass(frozen=True)
class ArithmeticDifficulty:
    """``digits`` of the first factor, 1 to 4. The second always has two."""

    digits: int

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= _DIGITS:
            raise ValueError(f"digits must be in [1, {_DIGITS}], got {self.digits}")


class ArithmeticTask(CharacterTask[ArithmeticDifficulty]):
    """Multiply, with the two partial products and their sum written out.

    ``0347*58=02776+017350=020126``: 347·8, 347·50 and their sum; the signs and the zero that
    shifts the second partial product are given, 16 digits are to be filled in. A digit
    follows locally from the digits to its right, through the carry, and the sum from the
    partial products: the order of filling matters.

    An answer is right when its product is. ``digits`` is the share of right digits,
    ``working`` is 1 if all 16 are right.
    """

    name = "arithmetic"
    template = f"{GIVEN * 4}*{GIVEN * 2}={FILL * 5}+{FILL * 5}0={FILL * 6}"
    difficulties: ClassVar[Mapping[str, ArithmeticDifficulty]] = {
        "easy": ArithmeticDifficulty(2),
        "medium": ArithmeticDifficulty(3),
        "hard": ArithmeticDifficulty(4),
    }
    training_mix = ("easy", "medium", "hard", "hard")
    shape = ModelShape(layers=3, width=128)
    recipe = TrainConfig(steps=8000, batch_size=128, learning_rate=2e-3)
    weights = Path(__file__).parent / "weights"

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        digits = self.difficulty.digits
        first = torch.randint(10 ** (digits - 1), 10**digits, (count,), generator=generator)
        second = torch.randint(10, 100, (count,), generator=generator)
        return torch.stack((first, second), dim=1)

    def key(self, problems: Tensor) -> Tensor:
        return problems[:, 0] * 100 + problems[:, 1]

    def render(self, problems: Tensor) -> Tensor:
        first, second = problems.unbind(1)
        ids = torch.tensor(encode(self.template.replace(GIVEN, "0").replace(FILL, "0")))
        ids = ids.repeat(len(problems), 1)
        for place, number in (
            (slice(0, 4), first),
            (slice(5, 7), second),
            (_PARTIAL, first * (second % 10)),
            (_SHIFTED, first * (second // 10)),
            (_PRODUCT, first * second),
        ):
            powers = 10 ** torch.arange(place.stop - place.start).flip(0)
            ids[:, place] = DIGIT_ID + number.unsqueeze(1) // powers % 10
        return ids

    def check(self, problem: TextProblem, answer: str) -> Judgement:
        digits = [k for k, c in enumerate(self.template[self.prompt_length() :]) if c == FILL]
        right = [answer[k] == problem.reference[k] for k in digits]
        metrics = {"digits": sum(right) / len(right), "working": float(all(right))}
        return Judgement(answer[-6:] == problem.reference[-6:], metrics)
