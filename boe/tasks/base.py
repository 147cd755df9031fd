"""What a task is: canvases to fill in, and a judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers.base import Denoiser
from boe.tasks.splits import Split
from boe.training import TrainConfig


@dataclass(frozen=True)
class TaskItem:
    """One canvas to fill in.

    Attributes:
        number: identifies the item and seeds its random draws.
        canvas: int64 (L,), with masks.
        data: what the judge needs, private to the task.
    """

    number: int
    canvas: Tensor
    data: Any


@dataclass(frozen=True)
class Judgement:
    """The verdict on one answer.

    Attributes:
        correct: whether it is right; this is what samplers are compared by.
        metrics: the task's further measures by name, each in [0, 1]; every item of a task
            has the same ones. A mean over items is the task's figure.
    """

    correct: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


class Task(ABC):
    """A set of items and the rule that judges answers to them.

    Class attributes:
        name: of the task, as on the command line.
        difficulties: the settings that have names; tasks in :data:`boe.tasks.TASKS` take
            such a name as their only argument, and have one called "hard".
        recipe: how ``boe train`` trains the denoiser that is shipped for the task.
    """

    name: str
    difficulties: ClassVar[Mapping[str, object]] = {}
    recipe: ClassVar[TrainConfig]

    @abstractmethod
    def items(self, count: int, seed: int, split: Split = "test") -> list[TaskItem]:
        """The first ``count`` items of the stream that ``seed`` and ``split`` fix.

        Tune on "validation", report on "test"; streams of different splits never share a
        problem, whatever their seeds.
        """

    @abstractmethod
    def judge(self, item: TaskItem, ids: Tensor) -> Judgement:
        """The verdict on the filled-in canvas ``ids`` (L,)."""

    def violated(self, canvas: Canvas) -> Tensor:
        """Whether what is written in each canvas breaks the task's rules already, bool (B,).

        Masks break none. For :class:`boe.samplers.Verifier`.

        Raises:
            ValueError: the task has no such rule.
        """
        raise ValueError(f"the task {self.name} has no rule for partly written answers")

    @abstractmethod
    def answer(self, ids: Tensor) -> str:
        """The answer as text."""

    @abstractmethod
    def denoiser(self) -> Denoiser:
        """The model that the package ships for this task, loaded once per task object."""
