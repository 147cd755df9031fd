"""Studies in shards are the studies that one process runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_task import FakeTask

from boe.evaluate.running import Run, run_study
from boe.evaluate.study import Group, Study, settings_of
from boe.scaling.job import JobFolder
from boe.scaling.studies import StudyJob, StudyWorker, gather

STUDY = Study(
    task="fake",
    difficulty="hard",
    groups=(Group(("confidence", "random"), settings_of({"tokens_per_step": [1, 2]})),),
    items=11,
    seeds=(0, 1),
    batch_size=2,
    traced=5,
)


def in_shards(folder: Path, shards: int) -> JobFolder:
    job = JobFolder(folder)
    job.open(StudyJob(STUDY, shards))
    worker = StudyWorker(job, FakeTask())
    for shard in reversed(range(shards)):
        worker.run_shard(shard)
    return job


def without_times(run: Run) -> tuple[object, ...]:
    records = [replace(record, seconds=0.0) for record in run.records]
    return run.study, run.denoiser, run.environment, records, run.traces, run.complete


@pytest.mark.parametrize("shards", [1, 3, 6])
def test_shards_put_together_are_the_run_of_one_process(tmp_path: Path, shards: int) -> None:
    expected = run_study(STUDY, FakeTask())
    folder = in_shards(tmp_path, shards)
    assert without_times(gather(folder, FakeTask())) == without_times(expected)
    assert len(expected.records) == 2 * 2 * 2 * 11


def test_whole_batches_go_to_a_shard() -> None:
    items = FakeTask().items(11, 0)
    parts = [StudyJob(STUDY, 3).part(shard, items) for shard in range(3)]
    assert [[item.number for item in own] for _, own in parts] == [
        [0, 1, 6, 7],
        [2, 3, 8, 9],
        [4, 5, 10],
    ]
    assert [(study.items, study.traced) for study, _ in parts] == [(4, 2), (4, 2), (3, 1)]
    with pytest.raises(ValueError, match=r"shards must be in \[1, 6\].*got 7"):
        StudyJob(STUDY, 7)


def test_a_shard_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    folder = in_shards(tmp_path, 2)
    path = folder.progress(1)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:7]) + lines[7][:9])
    task = FakeTask()
    StudyWorker(folder, task).run_shard(1)
    # Four cells of two seeds judged five items; what was kept was not judged again.
    assert sum(task.judged.values()) < 8 * 5
    expected = run_study(STUDY, FakeTask())
    assert without_times(gather(folder, FakeTask())) == without_times(expected)


@pytest.mark.parametrize("name", ["denoiser", "environment"])
def test_shards_that_do_not_compare_are_not_put_together(tmp_path: Path, name: str) -> None:
    folder = in_shards(tmp_path, 2)
    report = json.loads(folder.report(1).read_text())
    folder.report(1).write_text(json.dumps({**report, name: "another"}))
    with pytest.raises(ValueError, match=f"shards 0 and 1 differ in their {name}"):
        gather(folder, FakeTask())


def test_another_study_needs_another_folder(tmp_path: Path) -> None:
    folder = in_shards(tmp_path, 2)
    with pytest.raises(ValueError, match=r"study\.items was 11, now 12"):
        folder.open(StudyJob(replace(STUDY, items=12), 2))
    with pytest.raises(ValueError, match="schema must be boe/generation-job/1"):
        folder.read()
