"""Countdown with three numbers, at character level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.tasks.base import Judgement
from boe.tasks.countdown.expressions import (
    ADDITIVE_FORMS,
    expression_table,
    expression_text,
    problem_key,
)
from boe.tasks.countdown.partial import breaks_rules
from boe.tasks.scoring.countdown import is_solution
from boe.tasks.scoring.pc_sampler import pc_countdown
from boe.tasks.text.model import ModelShape
from boe.tasks.text.task import FILL, GIVEN, CharacterTask, TextProblem
from boe.tasks.text.vocabulary import END, decode, encode_all
from boe.training import TrainConfig

_ANSWER = 10  # "(20+19)/13", the longest there is


@dataclass(frozen=True)
class CountdownDifficulty:
    """Settings of the problems.

    Attributes:
        largest: the largest number, 3 to 99.
        needs_product: sums and differences alone do not reach the target.
    """

    largest: int
    needs_product: bool = False

    def __post_init__(self) -> None:
        if not 3 <= self.largest <= 99:
            raise ValueError(f"largest must be in [3, 99], got {self.largest}")


class CountdownTask(CharacterTask[CountdownDifficulty]):
    """Reach a target from three numbers, each used once, by + − * / and parentheses.

    ``_3,17,20=34:`` (a space in place of ``_``) is answered by an expression such as
    ``20+17-3``, filled up with ``.`` to ten characters.

    An answer is right by d1's rule: it has the target's value and uses each number exactly
    once. ``reference`` is PC-Sampler's rule: it is the reference solution itself, which
    misses other solutions.
    """

    name = "countdown"
    template = f"{GIVEN * 2},{GIVEN * 2},{GIVEN * 2}={GIVEN * 2}:{FILL * _ANSWER}"
    difficulties: ClassVar[Mapping[str, CountdownDifficulty]] = {
        "easy": CountdownDifficulty(12),
        "medium": CountdownDifficulty(20),
        "hard": CountdownDifficulty(20, needs_product=True),
    }
    training_mix = ("easy", "medium", "hard")
    shape = ModelShape(layers=4, width=128)
    recipe = TrainConfig(steps=3000, batch_size=128, learning_rate=2e-3)
    weights = Path(__file__).parent / "weights"

    @cached_property
    def _table(self) -> Tensor:
        table = expression_table(self.difficulty.largest)
        if not self.difficulty.needs_product:
            return table
        keys = problem_key(table[:, :3], table[:, 4])
        additive = keys[table[:, 3] < ADDITIVE_FORMS]
        return table[~torch.isin(keys, additive)]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """An expression, and the order in which its numbers are shown, (N, 8)."""
        chosen = torch.randint(len(self._table), (count,), generator=generator)
        order = torch.rand(count, 3, generator=generator).argsort(dim=1)
        return torch.cat((self._table[chosen], order), dim=1)

    def key(self, problems: Tensor) -> Tensor:
        return problem_key(problems[:, :3], problems[:, 4])

    def render(self, problems: Tensor) -> Tensor:
        texts = []
        for a, b, c, form, value, *order in problems.tolist():
            shown = [(a, b, c)[k] for k in order]
            prompt = ",".join(f"{number:2d}" for number in shown) + f"={value:2d}:"
            texts.append(prompt + expression_text(a, b, c, form).ljust(_ANSWER, END))
        return encode_all(texts)

    def violated(self, canvas: Canvas) -> Tensor:
        """What :func:`breaks_rules` finds in the answer."""
        start = self.prompt_length()
        texts = [decode(ids) for ids in canvas.ids]
        broken = [breaks_rules(*_problem(t[:start]), t[start:]) for t in texts]
        return torch.tensor(broken, device=canvas.ids.device)

    def check(self, problem: TextProblem, answer: str) -> Judgement:
        numbers, target = _problem(problem.prompt)
        expression, _, rest = answer.partition(END)
        # What stands behind the end must be filling only, or the answer is not finished.
        finished = not rest.strip(END)
        metrics = {"reference": float(pc_countdown(expression, problem.reference.rstrip(END)))}
        return Judgement(finished and is_solution(expression, numbers, target), metrics)


def _problem(prompt: str) -> tuple[list[int], int]:
    """The numbers and the target that a prompt shows."""
    shown, _, target = prompt.rstrip(":").partition("=")
    return [int(number) for number in shown.split(",")], int(target)
