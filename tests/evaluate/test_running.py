"""Running a study: batches, resuming, interruptions, and what decides a result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fake_task import FakeTask

from boe.evaluate import Group, Record, RecordStore, Run, Setting, Study, analyse, run_study
from boe.evaluate.fingerprint import fingerprint
from boe.evaluate.running import describe
from boe.evaluate.study import Cell

BOE = "boe:tolerance=none,rho=0.5"
STUDY = Study(
    task="fake",
    difficulty="hard",
    groups=(Group(("confidence", BOE), (Setting(1), Setting(2))),),
    items=5,
    batch_size=2,
)


def untimed(records: list[Record]) -> list[Record]:
    return [replace(record, seconds=0.0) for record in records]


def test_every_cell_decodes_every_item_once_and_in_order() -> None:
    task = FakeTask()
    run = run_study(STUDY, task)
    assert run.complete
    assert run.resumed == 0
    assert [(r.setting, r.sampler) for r in run.records[::5]] == [
        (Setting(1), "confidence"),
        (Setting(1), BOE),
        (Setting(2), "confidence"),
        (Setting(2), BOE),
    ]
    assert [r.item for r in run.records] == [0, 1, 2, 3, 4] * 4
    assert task.judged == dict.fromkeys(range(5), 4)


def test_a_record_holds_the_verdict_and_the_cost() -> None:
    records = run_study(STUDY, FakeTask()).records[10:15]
    assert [r.correct for r in records] == [True, False, True, False, True]
    assert {r.answer for r in records} == {"1234"}
    assert {tuple(r.metrics.items()) for r in records} == {(("places", 1.0),)}
    assert {(r.steps, r.nfe_forward, r.n_backward, r.flop_equiv) for r in records} == {(2, 2, 0, 2)}


def test_each_batch_is_decoded_by_all_cells_before_the_next() -> None:
    seen: list[tuple[str, int]] = []
    run_study(STUDY, FakeTask(), on_record=lambda cell, count: seen.append((cell.sampler, count)))
    assert [count for _, count in seen] == [2] * 4 + [2] * 4 + [1] * 4
    assert [sampler for sampler, _ in seen[:4]] == ["confidence", BOE, "confidence", BOE]


@pytest.mark.parametrize("sampler", ["random", BOE])
def test_the_batch_size_changes_no_answer_and_no_cost(sampler: str) -> None:
    def outcome(size: int) -> list[Record]:
        group = Group((sampler,), (Setting(1, temperature=1.0),))
        study = replace(STUDY, groups=(group,), seeds=(3,), batch_size=size)
        return untimed(run_study(study, FakeTask()).records)

    assert outcome(1) == outcome(2) == outcome(5)


def test_seeds_are_draws_of_the_same_items() -> None:
    group = Group(("random",), (Setting(1, temperature=1.0),))
    run = run_study(replace(STUDY, groups=(group,), seeds=(0, 1)), FakeTask())
    assert Counter(record.seed for record in run.records) == {0: 5, 1: 5}
    answers = [[r.answer for r in run.records if r.seed == seed] for seed in (0, 1)]
    assert answers[0] != answers[1]


def test_seconds_are_the_median_of_all_timings_and_nothing_is_judged_again(tmp_path: Path) -> None:
    task, path = FakeTask(), tmp_path / "r.jsonl"
    seen: list[int] = []
    study = replace(STUDY, timings=3, traced=1)
    with RecordStore(path) as store:
        first = run_study(STUDY, task, store=store)
        run = run_study(study, task, store=store, on_record=lambda cell, count: seen.append(count))
        assert sum(seen) == study.decodes == 4 * (5 * 3 + 1)
    assert task.judged == dict.fromkeys(range(5), 4)
    assert untimed(run.records) == untimed(first.records)
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    of = {line["cell"]: line["of"] for line in lines if "of" in line}
    seconds: dict[tuple[str, str, int], list[float]] = {}
    for line in lines:
        if "seconds" in line:
            cell = of[line["cell"]]
            place = (cell["sampler"], str(cell["setting"]), line["item"])
            seconds.setdefault(place, []).append(line["seconds"])
    for record in run.records:
        timings = seconds[describe(record.sampler), str(record.setting.as_json()), record.item]
        assert len(timings) == 3
        assert record.seconds == sorted(timings)[1]


def test_an_interrupted_timing_goes_on_where_it_was(tmp_path: Path) -> None:
    path, study = tmp_path / "r.jsonl", replace(STUDY, timings=2)
    calls: list[int] = []

    def stop(cell: Cell, count: int) -> None:
        calls.append(count)
        if len(calls) == 15:
            raise KeyboardInterrupt

    with RecordStore(path) as store:
        assert not run_study(study, FakeTask(), store=store, on_record=stop).complete
        before = len(path.read_text().splitlines())
        run = run_study(study, FakeTask(), store=store)
    assert run.complete
    after = path.read_text().splitlines()[before:]
    # Of the second round's 20 items 6 were there, and one cell's description was not.
    assert sum('"of"' not in line for line in after) == 20 - 6


# --- interruptions --------------------------------------------------------------------


def interrupted_after(batches: int, store: RecordStore, task: FakeTask) -> Run:
    calls = []

    def stop(cell: Cell, count: int) -> None:
        calls.append(count)
        if len(calls) == batches:
            raise KeyboardInterrupt

    return run_study(STUDY, task, store=store, on_record=stop)


@pytest.mark.parametrize("batches", [1, 4, 7])
def test_ctrl_c_keeps_what_is_done_and_the_rest_follows_later(tmp_path: Path, batches) -> None:
    path = tmp_path / "r.jsonl"
    task = FakeTask()
    with RecordStore(path) as store:
        run = interrupted_after(batches, store, task)
    assert not run.complete
    assert len(run.records) == 2 * batches
    assert not analyse(run).complete
    with RecordStore(path) as store:
        whole = run_study(STUDY, task, store=store)
    assert whole.complete
    assert whole.resumed == 2 * batches
    assert untimed(whole.records) == untimed(run_study(STUDY, FakeTask()).records)
    assert task.judged == dict.fromkeys(range(5), 4), "nothing was decoded twice"


def test_more_items_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    task, path = FakeTask(), tmp_path / "r.jsonl"
    for items in (3, 5):
        with RecordStore(path) as store:
            run = run_study(replace(STUDY, items=items), task, store=store)
    assert run.resumed == 12
    assert len(run.records) == 20
    assert task.judged == dict.fromkeys(range(5), 4)


PROGRAM = """
import sys, time
sys.path.insert(0, {path!r})
import fake_task
from boe.tasks import TASKS

class SlowTask(fake_task.FakeTask):
    def judge(self, item, ids):
        time.sleep(0.02)
        return super().judge(item, ids)

TASKS["fake"] = SlowTask
from boe.cli import main
sys.argv = ["boe", "compare", "--task", "fake", "--samplers", "confidence;random",
            "--tokens-per-step", "1,2", "--temperature", "1", "--items", "40", "--batch", "4",
            "--threads", "1", "--output", {output!r}]
main()
"""


def test_a_killed_program_goes_on_with_nothing_lost_and_nothing_repeated(tmp_path: Path) -> None:
    beside = Path(__file__).parents[1]
    code = PROGRAM.format(path=str(beside), output=str(tmp_path / "out"))
    records = tmp_path / "out" / "records.jsonl"
    ran = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    while records_in(records) < 24:
        assert ran.poll() is None, ran.stderr.read().decode() if ran.stderr else ""
        time.sleep(0.01)
    os.kill(ran.pid, signal.SIGKILL)
    ran.communicate()
    survived = records_in(records)
    assert survived < 160, "it was killed before the end"

    settings = (Setting(1, temperature=1.0), Setting(2, temperature=1.0))
    study = replace(
        STUDY,
        groups=(Group(("confidence", "random"), settings),),
        items=40,
        batch_size=4,
    )
    task = FakeTask()
    with RecordStore(records) as store:
        run = run_study(study, task, store=store)
    assert run.complete
    assert run.resumed == survived
    assert sum(task.judged.values()) == 160 - survived
    assert records_in(records) == 160
    assert untimed(run.records) == untimed(run_study(study, FakeTask()).records)


def records_in(path: Path) -> int:
    if not path.exists():
        return 0
    whole = path.read_bytes().rpartition(b"\n")[0]
    return whole.count(b'"item": ')


# --- what decides a result ------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": (1,)},
        {"item_seed": 1},
        {"split": "validation"},
        {"difficulty": "easy"},
        {"batch_size": 3},
        {"groups": (Group(("confidence", "boe:tolerance=none,rho=0.75"), (Setting(3),)),)},
    ],
)
def test_a_run_that_differs_in_anything_finds_nothing(changes: dict[str, object]) -> None:
    store = RecordStore()
    run_study(STUDY, FakeTask(), store=store)
    assert run_study(replace(STUDY, **changes), FakeTask(), store=store).resumed == 0


def test_another_model_finds_nothing() -> None:
    store, other = RecordStore(), FakeTask()
    run_study(STUDY, FakeTask(), store=store)
    other.denoiser().table[0, 1] += 1e-6
    assert run_study(STUDY, other, store=store).resumed == 0


def test_a_sampler_is_known_by_all_its_options_not_by_its_name() -> None:
    assert describe("boe") == describe("boe:alpha=0.5") != describe("boe:alpha=0.25")


def test_a_sampler_is_known_by_the_content_of_the_files_it_names(tmp_path: Path) -> None:
    from boe.samplers import BackgroundFrequencies

    path = tmp_path / "f.json"
    BackgroundFrequencies.of_ids([[1, 2]], 6).save(path)
    before = describe(f"pc:frequencies={path}")
    BackgroundFrequencies.of_ids([[1, 1, 2]], 6).save(path)
    assert describe(f"pc:frequencies={path}") != before


def test_items_that_have_changed_since_are_found_out_before_work() -> None:
    store, task = RecordStore(), FakeTask()
    run_study(STUDY, task, store=store)
    items = task.items(5, 0)
    items[3].canvas[0] = 1
    with pytest.raises(ValueError, match="the stored results are of another item 3"):
        run_study(STUDY, task, items=items, store=store)


def test_a_fingerprint_needs_something_to_take_it_of() -> None:
    task = FakeTask()
    bare = object.__new__(type(task.denoiser()))
    bare.facts = task.denoiser().facts
    with pytest.raises(TypeError, match="has no module or tensor"):
        fingerprint(bare)
    assert fingerprint(task.denoiser()) == fingerprint(FakeTask().denoiser())


# --- traces ---------------------------------------------------------------------------


def test_traces_show_the_entropy_before_each_step_and_what_was_spent() -> None:
    group = Group(("confidence", BOE), (Setting(2), Setting(1)))
    run = run_study(replace(STUDY, groups=(group,), traced=3), FakeTask())
    confident, _, _, steered = run.traces.values()
    assert [trace.item for trace in confident] == [0, 1, 2]
    assert confident[0].masks == (4, 2, 0)
    assert confident[0].cost == (0.0, 1.0, 2.0)
    entropy = confident[0].entropy
    assert entropy[0] > entropy[1] > entropy[2] == 0.0
    assert steered[0].masks == (4, 3, 2, 1, 0)
    assert steered[0].cost[1] > 1.0, "the first step had a backward"


def test_tracing_costs_the_records_nothing() -> None:
    plain = run_study(STUDY, FakeTask()).records
    traced = run_study(replace(STUDY, traced=5), FakeTask()).records
    assert untimed(plain) == untimed(traced)


def test_traces_are_resumed_too() -> None:
    store = RecordStore()
    study = replace(STUDY, traced=5)
    first = run_study(study, FakeTask(), store=store)
    task = FakeTask()
    calls = len(task.denoiser().canvases)
    assert run_study(study, task, store=store).traces == first.traces
    assert len(task.denoiser().canvases) == calls, "no forward was run"
