"""A task on the fake denoiser: an answer is right when position 0 came first."""

from __future__ import annotations

import torch
from fake_denoiser import MASK, FakeDenoiser, table_of
from torch import Tensor

from boe.tasks import Task, TaskItem


class FakeTask(Task):
    """Canvases of 4 masks; odd items are always judged wrong."""

    name = "fake"

    def items(self, count: int, seed: int) -> list[TaskItem]:
        return [TaskItem(k, torch.full((4,), MASK), k) for k in range(count)]

    def judge(self, item: TaskItem, ids: Tensor) -> bool:
        return item.data % 2 == 0 and ids.tolist() == [1, 2, 3, 4]

    def answer(self, ids: Tensor) -> str:
        return "".join(map(str, ids.tolist()))

    def denoiser(self) -> FakeDenoiser:
        return FakeDenoiser(table_of([0.9, 0.5, 0.8, 0.4]))
