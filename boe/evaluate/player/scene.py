"""One canvas decoded by some samplers, with all that is known about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from boe.decoding import Account, Item, StepRecord
from boe.denoisers.base import Denoiser
from boe.evaluate.record import run_cell
from boe.evaluate.settings import Setting
from boe.evaluate.study import Cell
from boe.tasks import ProseTask, SudokuTask, Task, TaskItem
from boe.tasks.sudoku.grid import solutions
from boe.tasks.text.task import CharacterTask
from boe.tasks.text.vocabulary import decode, encode

GRID_COLUMNS = 9


@dataclass(frozen=True)
class Mistake:
    """The first write that stayed and is not the truth."""

    step: int
    position: int
    wrote: int
    truth: int


@dataclass(frozen=True)
class Film:
    """One decode.

    Attributes:
        ids: the filled-in canvas (L,).
        correct: the task's verdict, if there is one.
    """

    sampler: str
    setting: Setting
    ids: Tensor
    steps: tuple[StepRecord, ...]
    account: Account
    correct: bool | None = None

    def mistakes(self, truth: Tensor | None) -> list[Mistake]:
        """Writes that stayed to the end and differ from ``truth`` (L,), in order of step.

        None where the truth is not known, or the answer is right all the same.
        """
        if truth is None or self.correct:
            return []
        last: dict[int, int] = {}
        for number, step in enumerate(self.steps):
            last.update(dict.fromkeys(step.revealed.tolist(), number))
        wrong = [
            Mistake(step, position, int(self.ids[position]), int(truth[position]))
            for position, step in last.items()
            if int(self.ids[position]) != int(truth[position])
        ]
        return sorted(wrong, key=lambda mistake: (mistake.step, mistake.position))


@dataclass(frozen=True)
class Scene:
    """A canvas and how samplers filled it in.

    Attributes:
        columns: of a grid, with boxes of three; ``None`` for running text.
        start: the canvas (L,).
        label: an id as text.
        truth: the right ids (L,), where they are known.
        truth_kind: "solution" if it is the only right answer, "reference" if others may be.
    """

    title: str
    columns: int | None
    start: Tensor
    mask_id: int
    label: Callable[[int], str]
    films: tuple[Film, ...]
    truth: Tensor | None = None
    truth_kind: str = "solution"

    def as_json(self) -> dict[str, Any]:
        """What the page shows, with ids as text."""
        return {
            "title": self.title,
            "columns": self.columns,
            "start": [None if k == self.mask_id else self.label(k) for k in self.start.tolist()],
            "truth": None if self.truth is None else [self.label(k) for k in self.truth.tolist()],
            "truth_kind": self.truth_kind,
            "films": [self._film(film) for film in self.films],
        }

    def _film(self, film: Film) -> dict[str, Any]:
        return {
            "sampler": film.sampler,
            "setting": str(film.setting),
            "correct": film.correct,
            "cost": str(film.account),
            "final": [None if k == self.mask_id else self.label(k) for k in film.ids.tolist()],
            "mistakes": [
                {
                    **asdict(mistake),
                    "wrote": self.label(mistake.wrote),
                    "truth": self.label(mistake.truth),
                }
                for mistake in film.mistakes(self.truth)
            ],
            "steps": [
                {**record_as_json(step), "tokens": [self.label(k) for k in step.tokens.tolist()]}
                for step in film.steps
            ],
        }


def record_as_json(record: StepRecord) -> dict[str, Any]:
    """A step of a trajectory; infinite and undefined numbers become null."""
    return {
        "positions": record.positions.tolist(),
        "entropy": _numbers(record.entropy),
        "scores": _numbers(record.scores),
        "parts": {name: _numbers(values) for name, values in record.parts.items()},
        "revealed": record.revealed.tolist(),
        "tokens": record.tokens.tolist(),
        "remasked": record.remasked.tolist(),
    }


def film_item(
    task: Task,
    item: TaskItem,
    denoiser: Denoiser,
    samplers: Sequence[str],
    setting: Setting,
    seed: int = 0,
    title: str | None = None,
) -> Scene:
    """One item of a task decoded by each of ``samplers``, with the task's verdicts."""
    films = []
    for sampler in samplers:
        cell = Cell(sampler, setting, seed, sampler)
        result = _decode(denoiser, item.canvas, item.number, cell, task)
        verdict = task.judge(item, result.ids.cpu())
        films.append(_film_of(sampler, setting, result, verdict.correct))
    truth = truth_of(task, item)
    return Scene(
        title=title or f"{task.name}, item {item.number}",
        columns=GRID_COLUMNS if isinstance(task, SudokuTask) else None,
        start=item.canvas,
        mask_id=denoiser.facts.mask_id,
        label=_letters(task),
        films=tuple(films),
        truth=truth,
        truth_kind="solution" if isinstance(task, SudokuTask) else "reference",
    )


def film_text(
    denoiser: Denoiser,
    ids: Tensor,
    label: Callable[[int], str],
    samplers: Sequence[str],
    setting: Setting,
    seed: int = 0,
    title: str = "",
) -> Scene:
    """A canvas ``ids`` (L,) of a language model decoded by each of ``samplers``."""
    films = [
        _film_of(sampler, setting, _decode(denoiser, ids, 0, Cell(sampler, setting, seed, sampler)))
        for sampler in samplers
    ]
    return Scene(title, None, ids, denoiser.facts.mask_id, label, tuple(films))


def truth_of(task: Task, item: TaskItem) -> Tensor | None:
    """The ids of a right answer (L,): of a puzzle its only one, of a text its reference."""
    if isinstance(task, SudokuTask):
        found = list(islice(solutions(item.data), 2))
        return torch.tensor(found[0]) if len(found) == 1 else None
    if isinstance(task, CharacterTask):
        return torch.tensor(encode(item.data.prompt + item.data.reference))
    return None


def _letters(task: Task) -> Callable[[int], str]:
    if isinstance(task, CharacterTask):
        return lambda index: decode([index])
    if isinstance(task, ProseTask):
        return lambda index: task.answer(torch.tensor([index]))
    return str


def _decode(
    denoiser: Denoiser, canvas: Tensor, number: int, cell: Cell, task: Task | None = None
) -> Item:
    return run_cell(denoiser, [canvas], [number], cell, task, trajectory=True).items[0]


def _film_of(sampler: str, setting: Setting, item: Item, correct: bool | None = None) -> Film:
    if not item.trajectory:
        raise ValueError(f"{sampler} keeps no trajectory: nothing to watch")
    return Film(sampler, setting, item.ids.cpu(), tuple(item.trajectory), item.account, correct)


def _numbers(values: Tensor) -> list[float | int | bool | None]:
    listed: list[float | int | bool] = values.tolist()
    if not values.is_floating_point():
        return list(listed)
    return [value if abs(value) < float("inf") else None for value in listed]
