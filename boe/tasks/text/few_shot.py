"""Text tasks with solved examples before the problem: a long prompt, a short answer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.tasks.base import Judgement
from boe.tasks.splits import Split
from boe.tasks.text.task import FILL, GIVEN, CharacterTask, TextProblem
from boe.tasks.text.vocabulary import encode

SHOTS = 4
SEPARATOR = ";"


def few_shot_template(template: str) -> str:
    """``template`` after :data:`SHOTS` times the same with nothing to fill in."""
    return (SEPARATOR + template.replace(FILL, GIVEN)) * SHOTS + SEPARATOR + template


class FewShotTask(CharacterTask[Any]):
    """A text task whose prompt holds :data:`SHOTS` solved problems before the one to solve.

    The problems, their splits and the verdict on an answer are those of the task ``single``;
    the solved ones are of the training split and of the same difficulty.

    The denoiser is trained on all the problems of a canvas, each masked at a rate of its own.

    Class attributes:
        single: the task without examples. Name, template, recipe and weights are the
            subclass's own.
    """

    single: ClassVar[type[CharacterTask[Any]]]
    texts = SHOTS + 1

    def __init__(self, difficulty: Any = "hard") -> None:
        super().__init__(difficulty)
        self._single = self.single(difficulty)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """A problem, then those that are shown solved, (N, K · (shots + 1))."""
        drawn = self._single.draw(count, generator)
        shown = self._single.problems(len(drawn) * SHOTS, generator, "train", chunk=count * SHOTS)
        return torch.cat((drawn, shown.view(len(drawn), -1)), dim=1)

    def key(self, problems: Tensor) -> Tensor:
        return self._single.key(problems.chunk(self.texts, dim=1)[0])

    def in_split(self, keys: Tensor, split: Split) -> Tensor:
        return self._single.in_split(keys, split)

    def render(self, problems: Tensor) -> Tensor:
        problem, *shown = problems.chunk(self.texts, dim=1)
        separator = torch.tensor(encode(SEPARATOR)).expand(len(problems), 1)
        parts = [(separator, self._single.render(part)) for part in (*shown, problem)]
        return torch.cat([ids for part in parts for ids in part], dim=1)

    def violated(self, canvas: Canvas) -> Tensor:
        length = len(self.single.template)
        return self._single.violated(Canvas(canvas.ids[:, -length:], (length,) * canvas.batch))

    def check(self, problem: TextProblem, answer: str) -> Judgement:
        prompt = problem.prompt.rpartition(SEPARATOR)[2]
        return self._single.check(TextProblem(prompt, problem.reference), answer)

    @classmethod
    def position_groups(cls) -> list[list[int]]:
        """Those of the task without examples, and which example."""
        groups = [[max(group) + 1, *group] * cls.texts for group in cls.single.position_groups()]
        length = 1 + len(cls.single.template)
        return [*groups, [place // length for place in range(cls.texts * length)]]
