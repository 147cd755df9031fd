"""Studies in shards: whole batches of a task's items, decoded by all cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boe
from boe.denoisers.base import Denoiser
from boe.evaluate.environment import environment
from boe.evaluate.fingerprint import fingerprint
from boe.evaluate.running import Run, run_study, stored_run
from boe.evaluate.store import RecordStore
from boe.evaluate.study import Cell, Study
from boe.files import write_json
from boe.scaling.job import JobFolder
from boe.tasks import TASKS, Task, TaskItem

SCHEMA = "boe/study-job/1"


@dataclass(frozen=True)
class StudyJob:
    """A study whose batches are dealt to shards.

    Raises:
        ValueError: more shards than batches, or none.
    """

    study: Study
    shards: int

    def __post_init__(self) -> None:
        batches = -(-self.study.items // self.study.batch_size)
        if not 1 <= self.shards <= batches:
            raise ValueError(
                f"shards must be in [1, {batches}], the number of batches of "
                f"{self.study.batch_size} items in {self.study.items}, got {self.shards}"
            )

    def as_json(self) -> dict[str, Any]:
        study = self.study.as_json()
        return {"schema": SCHEMA, "boe": boe.__version__, "shards": self.shards, "study": study}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StudyJob:
        """The job that :meth:`as_json` wrote.

        Raises:
            ValueError: another schema.
        """
        if content.get("schema") != SCHEMA:
            raise ValueError(f"schema must be {SCHEMA}, got {content.get('schema')!r}")
        return cls(Study.from_json(content["study"]), content["shards"])

    def part(self, shard: int, items: Sequence[TaskItem]) -> tuple[Study, list[TaskItem]]:
        """A shard's items, and the study of them alone.

        Its batches are those of the whole study, and the traced items come first in it.
        """
        size = self.study.batch_size
        places = [k for k in range(len(items)) if k // size % self.shards == shard]
        traced = sum(place < self.study.traced for place in places)
        return (
            replace(self.study, items=len(places), traced=traced),
            [items[place] for place in places],
        )


class StudyWorker:
    """Decodes shards of a study, one after another.

    Args:
        folder: of the job.
        task: the study's, if it is there already.
    """

    def __init__(self, folder: JobFolder, task: Task | None = None) -> None:
        self.folder, self.job = folder, StudyJob.from_json(folder.content())
        study = self.job.study
        self.task = TASKS[study.task](study.difficulty) if task is None else task
        self._items = self.task.items(study.items, study.item_seed, study.split)
        self._denoiser: Denoiser = self.task.denoiser()

    def run_shard(self, shard: int) -> None:
        """Decode what the shard lacks.

        Raises:
            BlockingIOError: another process is at work on this shard.
            KeyboardInterrupt: Ctrl-C; what is done is kept.
        """
        study, items = self.job.part(shard, self._items)
        with RecordStore(self.folder.progress(shard)) as store:
            run = run_study(study, self.task, items=items, denoiser=self._denoiser, store=store)
        if not run.complete:
            raise KeyboardInterrupt
        write_json(
            self.folder.report(shard),
            {
                "shard": shard,
                "denoiser": fingerprint(self._denoiser),
                "environment": environment(),
            },
        )


def study_worker(folder: Path) -> StudyWorker:
    """The worker of a job, for datatrove."""
    return StudyWorker(JobFolder(folder))


def gather(folder: JobFolder, task: Task) -> Run:
    """The run of the whole study from its finished shards.

    Raises:
        ValueError: shards were made by different models, hardware or versions: their costs
            in seconds would not compare.
    """
    job = StudyJob.from_json(folder.content())
    study = job.study
    items = task.items(study.items, study.item_seed, study.split)
    reports = [json.loads(folder.report(shard).read_text()) for shard in range(job.shards)]
    first = reports[0]
    for report in reports[1:]:
        for name in ("denoiser", "environment"):
            if report[name] != first[name]:
                raise ValueError(
                    f"shards 0 and {report['shard']} differ in their {name}, {first[name]!r} and "
                    f"{report[name]!r}: their costs do not compare"
                )
    places = {item.number: place for place, item in enumerate(items)}
    whole = Run(study, first["environment"], first["denoiser"], [], {}, complete=True)
    by_cell: dict[Cell, list[Any]] = {cell: [] for cell in study.cells()}
    for shard in range(job.shards):
        part, own = job.part(shard, items)
        with RecordStore(folder.progress(shard)) as store:
            run = stored_run(part, own, store, first["denoiser"], first["environment"])
        for cell in by_cell:
            by_cell[cell] += [r for r in run.records if _of(r, cell)]
            whole.traces.setdefault(cell, []).extend(run.traces.get(cell, ()))
    for cell, records in by_cell.items():
        whole.records += sorted(records, key=lambda record: places[record.item])
        whole.traces[cell].sort(key=lambda trace: places[trace.item])
    whole.traces = {cell: traces for cell, traces in whole.traces.items() if traces}
    expected = len(by_cell) * len(items)
    if len(whole.records) != expected:
        raise ValueError(
            f"{folder.path} holds {len(whole.records)} results, the study asks for {expected}"
        )
    return whole


def _of(record: Any, cell: Cell) -> bool:
    return (record.sampler, record.setting, record.seed) == (cell.sampler, cell.setting, cell.seed)
