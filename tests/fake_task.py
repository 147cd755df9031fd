"""A task on the fake denoiser: an answer is right when position 0 came first."""

from __future__ import annotations

import torch
from fake_denoiser import MASK, FakeDenoiser, table_of
from torch import Tensor

from boe.tasks import Judgement, Task, TaskItem
from boe.tasks.splits import Split


class FakeTask(Task):
    """Canvases of 4 masks; odd items are always judged wrong.

    ``judged`` counts how often each item was.
    """

    name = "fake"
    difficulties = ("hard", "easy")

    def __init__(self, difficulty: str = "hard") -> None:
        self.difficulty = difficulty
        self.judged: dict[int, int] = {}
        self._denoiser = FakeDenoiser(
            table_of([0.9, 0.5, 0.8, 0.4]),
            torch.tensor([0.1, 0.4, 0.2, 0.3]),
            bridge_scores=torch.zeros(4),
        )

    def items(self, count: int, seed: int, split: Split = "test") -> list[TaskItem]:
        return [TaskItem(k, torch.full((4,), MASK), k) for k in range(count)]

    def judge(self, item: TaskItem, ids: Tensor) -> Judgement:
        self.judged[item.number] = self.judged.get(item.number, 0) + 1
        right = ids.tolist() == [1, 2, 3, 4]
        return Judgement(item.data % 2 == 0 and right, {"places": float(right)})

    def answer(self, ids: Tensor) -> str:
        return "".join(map(str, ids.tolist()))

    def denoiser(self) -> FakeDenoiser:
        return self._denoiser
