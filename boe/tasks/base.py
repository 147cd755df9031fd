"""What a task is: canvases to fill in, and a judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from boe.denoisers.base import Denoiser


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


class Task(ABC):
    """A set of items and the rule that judges answers to them."""

    name: str

    @abstractmethod
    def items(self, count: int, seed: int) -> list[TaskItem]:
        """The first ``count`` items of the stream that ``seed`` fixes."""

    @abstractmethod
    def judge(self, item: TaskItem, ids: Tensor) -> bool:
        """Whether the filled-in canvas ``ids`` (L,) is right."""

    @abstractmethod
    def answer(self, ids: Tensor) -> str:
        """The answer as text."""

    @abstractmethod
    def denoiser(self) -> Denoiser:
        """The model that the package ships for this task."""
