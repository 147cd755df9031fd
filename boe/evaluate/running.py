"""Running a study: batch by batch, each cell in turn, from wherever it was left."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import boe
from boe.decoding import TokensPerStep, generate
from boe.denoisers.base import Denoiser
from boe.evaluate.environment import environment
from boe.evaluate.fingerprint import fingerprint, short_digest
from boe.evaluate.record import Record, Trace, decode, time_again, trace
from boe.evaluate.store import RecordStore
from boe.evaluate.study import Cell, Study
from boe.samplers import Policy, Strategy, strategy_from
from boe.tasks import Task, TaskItem

_Results = Callable[[Denoiser, Task, Sequence[TaskItem], Cell], list[dict[str, Any]]]
"""Runs a cell on items as one batch; what is stored of each."""


@dataclass
class Run:
    """What a run has so far, in the order of the study's cells and items.

    Attributes:
        denoiser: its fingerprint, where it is known.
        complete: all that the study asks for is there.
        resumed: how many records were there before.
    """

    study: Study
    environment: dict[str, Any]
    denoiser: str | None
    records: list[Record]
    traces: dict[Cell, list[Trace]]
    complete: bool = False
    resumed: int = 0


def run_study(
    study: Study,
    task: Task,
    *,
    items: Sequence[TaskItem] | None = None,
    denoiser: Denoiser | None = None,
    store: RecordStore | None = None,
    on_record: Callable[[Cell, int], None] = lambda cell, count: None,
) -> Run:
    """Decode everything that the study asks for and the store does not have.

    Each batch of items is decoded by all cells before the next: the machine's load weighs on
    all alike, and an interrupted run has compared everything on the same items. Further
    timings go through all of it again for the same reason. Ctrl-C ends the run early and
    returns what is there.

    Args:
        task: the study's task object.
        items: its items, if they are already there.
        denoiser: the task's own by default.
        store: where results are kept; in memory by default.
        on_record: called with a cell and how many items of it were decoded, timed again,
            traced or found.

    Raises:
        ValueError: the store holds results for other items of the same number.
    """
    denoiser = task.denoiser() if denoiser is None else denoiser
    store = RecordStore() if store is None else store
    if items is None:
        items = task.items(study.items, study.item_seed, study.split)
    where, identity = environment(), fingerprint(denoiser)
    cells = list(study.cells())
    keys = _keys(study, identity, where, "decode")
    # What is run over which items, in turn, and under which keys it is stored.
    passes: list[tuple[dict[Cell, dict[str, Any]], Sequence[TaskItem], _Results]] = [
        (keys, items, _outcomes),
        *((again, items, time_again) for again in _timing_keys(study, identity, where)),
        (_keys(study, identity, where, "trace"), items[: study.traced], _traces),
    ]
    resumed = sum(len(_stored(store, key, items)) for key in keys.values())
    complete = False
    try:
        warm = False
        for pass_keys, asked, results_of in passes:
            for batch in _batches(asked, study.batch_size):
                for cell in cells:
                    missing = _missing(store, pass_keys[cell], batch)
                    if missing and not warm:
                        _warm_up(denoiser, missing[0])
                        warm = True
                    if missing:
                        results = results_of(denoiser, task, missing, cell)
                        _append(store, pass_keys[cell], missing, results)
                    on_record(cell, len(batch))
        complete = True
    except KeyboardInterrupt:
        pass
    return replace(
        stored_run(study, items, store, identity, where), complete=complete, resumed=resumed
    )


def stored_run(
    study: Study,
    items: Sequence[TaskItem],
    store: RecordStore,
    denoiser: str | None,
    where: Mapping[str, Any],
) -> Run:
    """What a store has of a study, as far as it goes.

    Args:
        items: of the task, those that are asked for.
        denoiser, where: fingerprint and :func:`environment` that the results were made with.

    Raises:
        ValueError: the store holds results for other items of the same number.
    """
    run = Run(study, dict(where), denoiser, [], {})
    trace_keys = _keys(study, denoiser, where, "trace")
    timing_keys = _timing_keys(study, denoiser, where)
    for cell, key in _keys(study, denoiser, where, "decode").items():
        seconds: dict[int, list[float]] = {}
        for again in timing_keys:
            for timed in _stored(store, again[cell], items):
                seconds.setdefault(timed["item"], []).append(timed["seconds"])
        for outcome in _stored(store, key, items):
            timings = [outcome["seconds"], *seconds.get(outcome["item"], ())]
            run.records.append(Record.of(cell, {**outcome, "seconds": median(timings)}))
        traced = _stored(store, trace_keys[cell], items[: study.traced])
        if traced:
            run.traces[cell] = [Trace.from_json(content) for content in traced]
    return run


def _outcomes(
    denoiser: Denoiser, task: Task, items: Sequence[TaskItem], cell: Cell
) -> list[dict[str, Any]]:
    return [record.outcome() for record in decode(denoiser, task, items, cell)]


def _traces(
    denoiser: Denoiser, task: Task, items: Sequence[TaskItem], cell: Cell
) -> list[dict[str, Any]]:
    return [traced.as_json() for traced in trace(denoiser, task, items, cell)]


def _keys(
    study: Study, denoiser: str | None, where: Mapping[str, Any], kind: str
) -> dict[Cell, dict[str, Any]]:
    """What decides the results of each cell."""
    base = {
        "boe": boe.__version__,
        "task": study.task,
        "difficulty": study.difficulty,
        "split": study.split,
        "item_seed": study.item_seed,
        "denoiser": denoiser,
        "batch_size": study.batch_size,
        "environment": dict(where),
    }
    return {cell: {**base, **_identity(cell), "kind": kind} for cell in study.cells()}


def _timing_keys(
    study: Study, denoiser: str | None, where: Mapping[str, Any]
) -> list[dict[Cell, dict[str, Any]]]:
    """Of every timing after the first, the keys of its cells."""
    return [
        _keys(study, denoiser, where, f"timing {number}") for number in range(2, study.timings + 1)
    ]


def describe(sampler: str | Policy | Strategy) -> str:
    """A sampler with every option, so that a changed default makes another sampler of it."""
    strategy = strategy_from(sampler)
    return repr(strategy) + "".join(sorted(_files_of(strategy)))


def _identity(cell: Cell) -> dict[str, Any]:
    return {
        "sampler": describe(cell.sampler),
        "setting": cell.setting.as_json(),
        "seed": cell.seed,
    }


def _files_of(part: Any) -> Iterator[str]:
    """Digests of files that a sampler's options name."""
    if is_dataclass(part):
        for field in fields(part):
            yield from _files_of(getattr(part, field.name))
    elif isinstance(part, str) and Path(part).is_file():
        yield hashlib.blake2b(Path(part).read_bytes(), digest_size=10).hexdigest()


def _batches(items: Sequence[TaskItem], size: int) -> Iterator[Sequence[TaskItem]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _missing(store: RecordStore, key: dict[str, Any], items: Sequence[TaskItem]) -> list[TaskItem]:
    there = store.results(key)
    return [item for item in items if item.number not in there]


def _append(
    store: RecordStore,
    key: dict[str, Any],
    items: Sequence[TaskItem],
    results: Sequence[dict[str, Any]],
) -> None:
    store.append(
        key,
        [
            {**result, "canvas": short_digest(item.canvas)}
            for item, result in zip(items, results, strict=True)
        ],
    )


def _stored(
    store: RecordStore, key: dict[str, Any], items: Sequence[TaskItem]
) -> list[dict[str, Any]]:
    """The stored results of these items, in order, without the canvases' digests."""
    there = store.results(key)
    found = []
    for item in items:
        result = there.get(item.number)
        if result is None:
            continue
        if result["canvas"] != short_digest(item.canvas):
            raise ValueError(
                f"the stored results are of another item {item.number}: the task's items have "
                "changed since; start a new file"
            )
        found.append({name: value for name, value in result.items() if name != "canvas"})
    return found


def _warm_up(denoiser: Denoiser, item: TaskItem) -> None:
    """One forward whose cost nobody is charged: the first is slower than any other."""
    masks = int((item.canvas == denoiser.facts.mask_id).sum())
    canvas = item.canvas.to(denoiser.device)
    generate(denoiser, canvas, "confidence", budget=TokensPerStep(max(1, masks)))
