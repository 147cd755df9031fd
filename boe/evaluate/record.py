"""One record per item, sampler, setting and seed: how it went and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from boe.decoding import Generation, Item, generate
from boe.denoisers.base import Denoiser
from boe.evaluate.settings import Setting
from boe.evaluate.study import Cell
from boe.samplers import strategy_from
from boe.tasks import Task, TaskItem

COSTS = ("nfe_forward", "n_backward", "flop_equiv", "seconds")
"""Fields of a record that are costs (:class:`boe.decoding.Account`)."""


@dataclass(frozen=True)
class Record:
    """How one item went.

    Attributes:
        item: the item's number.
        correct, metrics: the task's judgement.
        answer: as text.
        steps … seconds: as in :class:`boe.decoding.Account`.
    """

    item: int
    sampler: str
    setting: Setting
    seed: int
    correct: bool
    answer: str
    steps: int
    nfe_forward: float
    n_backward: float
    flop_equiv: float
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    def outcome(self) -> dict[str, Any]:
        """What is not the cell's: all but sampler, setting and seed."""
        return {
            "item": self.item,
            "correct": self.correct,
            "answer": self.answer,
            "metrics": dict(self.metrics),
            "steps": self.steps,
            **{cost: getattr(self, cost) for cost in COSTS},
        }

    def as_json(self) -> dict[str, Any]:
        cell = {"sampler": self.sampler, "setting": self.setting.as_json(), "seed": self.seed}
        return {**cell, **self.outcome()}

    @classmethod
    def of(cls, cell: Cell, outcome: Mapping[str, Any]) -> Record:
        """The record of a cell with the ``outcome`` that was stored."""
        return cls(sampler=cell.sampler, setting=cell.setting, seed=cell.seed, **outcome)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Record:
        """The record that :meth:`as_json` wrote."""
        setting = Setting.from_json(content["setting"])
        return cls(**{**content, "setting": setting})


@dataclass(frozen=True)
class Trace:
    """The remaining uncertainty of one item as it was decoded.

    Attributes:
        entropy: Σ H over the masked positions before each step and, 0, after the last, nats.
        masks: their number.
        cost: flop_equiv spent until then.
    """

    item: int
    entropy: tuple[float, ...]
    masks: tuple[int, ...]
    cost: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "item": self.item,
            "entropy": list(self.entropy),
            "masks": list(self.masks),
            "cost": list(self.cost),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Trace:
        lists = {name: tuple(content[name]) for name in ("entropy", "masks", "cost")}
        return cls(item=content["item"], **lists)


def decode(denoiser: Denoiser, task: Task, items: Sequence[TaskItem], cell: Cell) -> list[Record]:
    """Decode ``items`` as one batch and judge them."""
    generation = run_cell(denoiser, *_of_items(items), cell, task)
    records = []
    for item, result in zip(items, generation.items, strict=True):
        account, ids = result.account, result.ids.cpu()
        verdict = task.judge(item, ids)
        records.append(
            Record(
                item=item.number,
                sampler=cell.sampler,
                setting=cell.setting,
                seed=cell.seed,
                correct=verdict.correct,
                answer=task.answer(ids),
                steps=account.steps,
                nfe_forward=account.nfe_forward,
                n_backward=account.n_backward,
                flop_equiv=account.flop_equiv,
                seconds=account.seconds,
                metrics=dict(verdict.metrics),
            )
        )
    return records


def time_again(
    denoiser: Denoiser, task: Task, items: Sequence[TaskItem], cell: Cell
) -> list[dict[str, Any]]:
    """Each item's number and the seconds that decoding it takes, as one batch."""
    generation = run_cell(denoiser, *_of_items(items), cell, task)
    return [
        {"item": item.number, "seconds": result.account.seconds}
        for item, result in zip(items, generation.items, strict=True)
    ]


def trace(denoiser: Denoiser, task: Task, items: Sequence[TaskItem], cell: Cell) -> list[Trace]:
    """Decode ``items`` as one batch for the uncertainty that each step leaves.

    Raises:
        ValueError: the strategy keeps no trajectory (particles).
    """
    spent: list[list[float]] = [[0.0] for _ in items]

    def note(number: int, item: Item) -> None:
        spent[number].append(item.account.flop_equiv)

    generation = run_cell(denoiser, *_of_items(items), cell, task, trajectory=True, on_step=note)
    traces = []
    for item, result, costs in zip(items, generation.items, spent, strict=True):
        steps = result.trajectory
        if not steps or len(steps) != len(costs) - 1:
            raise ValueError(
                f"{cell.sampler} decodes several trajectories per item; its remaining entropy "
                "cannot be traced"
            )
        traces.append(
            Trace(
                item.number,
                (*(float(step.entropy.double().sum()) for step in steps), 0.0),
                (*(len(step.positions) for step in steps), 0),
                tuple(costs),
            )
        )
    return traces


def run_cell(
    denoiser: Denoiser,
    canvases: Sequence[Tensor],
    numbers: Sequence[int],
    cell: Cell,
    task: Task | None = None,
    **options: Any,
) -> Generation:
    """Decode canvases (L,) by a cell's sampler, setting and seed.

    Args:
        numbers: of the items, which seed their draws.
        task: whose rule a sampler keeps to that needs one ("verified", "backtrack").
        options: further arguments of :func:`boe.generate`.
    """
    setting = cell.setting
    strategy = strategy_from(cell.sampler)
    if strategy.ruled and task is not None:
        strategy = strategy.keeping_to(task.violated)
    return generate(
        denoiser,
        [canvas.to(denoiser.device) for canvas in canvases],
        strategy,
        budget=setting.budget,
        block_length=setting.block_length,
        temperature=setting.temperature,
        top_p=setting.top_p,
        guidance=setting.guidance,
        seed=cell.seed,
        item_ids=list(numbers),
        **options,
    )


def _of_items(items: Sequence[TaskItem]) -> tuple[list[Tensor], list[int]]:
    return [item.canvas for item in items], [item.number for item in items]
