"""The GPU run, from tests to summary, at toy sizes on the CPU."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from threading import Event

import pytest
import torch

import bench
from bench.gpu import correctness, llm, run
from bench.gpu.benchmark import Benchmark, Machine
from bench.gpu.correctness import FileOutcome
from bench.gpu.launches import FatalDeviceError
from bench.gpu.options import parse
from bench.gpu.outcomes import Outcome
from bench.results import Config, Environment, Measurement, Quantiles

TEST_FILE = "tests/gpu/test_gpu_query_attention.py"


def rows_in(folder, unverified=False):
    stem = run.file_stem(Environment.of(torch.device("cpu")).hardware)
    path = folder / f"{stem}{'-unverified' if unverified else ''}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- the whole ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a whole run has left its results."""
    folder = tmp_path_factory.mktemp("gpu")
    run.main(["--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return rows_in(folder)


def test_a_run_times_ours_in_every_benchmark(rows):
    timed = {
        row["benchmark"]
        for row in rows
        if (row["provider"], row["metric"]) == ("ours", "time_ms") and row["value"]
    }
    # Of a whole step the plain forward is what the others are compared with.
    assert timed == {benchmark.name for benchmark in run.BENCHMARKS} - {llm.BENCHMARK.name}
    steps = {row["provider"] for row in rows if row["benchmark"] == llm.BENCHMARK.name}
    assert {"forward", "confidence", "boe ρ=0.25", "boe ρ=0.25/confidence"} <= steps


def test_every_time_is_there_or_says_why_it_is_not(rows):
    times = [row for row in rows if row["metric"] == "time_ms"]
    assert all(bool(row["value"]) != bool(row["note"]) for row in times)
    graphed = [row for row in times if row["mode"].endswith("graphed")]
    # Without a GPU only the floors are known.
    assert {row["provider"] for row in graphed if row["value"]} == {"roofline"}
    assert any("CUDA graphs need a GPU" in row["note"] for row in graphed)


def test_no_contestant_that_can_run_here_is_wrong(rows):
    assert not [row for row in rows if "wrong result" in row["note"]]
    failures = {row["provider"] for row in rows if row["note"] and "graphs" not in row["note"]}
    assert failures <= {"cudnn", "efficient", "flex", "memcheck"}


def test_the_tests_have_passed_and_are_stored(rows):
    passed = {
        row["config"]: float(row["value"])
        for row in rows
        if (row["benchmark"], row["metric"]) == ("tests", "passed")
    }
    assert len(passed) == len(correctness.test_files())
    assert sum(passed.values()) >= 8
    assert not [row for row in rows if row["metric"] == "failure"]


def test_the_summary_has_verdicts_aims_and_tables(folder):
    (path,) = folder.glob("*.md")
    text = path.read_text()
    assert "Everything that ran passed." in text
    assert "| backward within 2× of its floor, graphed |" in text
    assert "not measured" in text
    assert "## Token draws" in text
    _, losses = text.split("## Where we lose\n\n")
    assert losses.startswith("At ")
    _, steps = text.split("8 billion parameters\n\n")
    assert "| model=dream-7b scale=1/64 B=1 L=32 masks=12 | confidence |" in steps


def test_a_second_run_repeats_nothing(folder, rows, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("this is stored already")

    repeated = [replace(benchmark, measure=refuse) for benchmark in run.BENCHMARKS]
    monkeypatch.setattr(run, "BENCHMARKS", tuple(repeated))
    monkeypatch.setattr(correctness, "run_tests", refuse)
    run.main(["--output", str(folder)])
    assert rows_in(folder) == rows


def test_the_list_says_what_is_stored(folder, capsys):
    run.main(["--output", str(folder), "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert all("stored" in line for line in lines)
    assert len(lines) > len(correctness.test_files())
    assert "sweep llm_step" in lines[-1], "what takes long is timed last"


# --- what is done in which order, and what is kept ----------------------------------


@dataclass(frozen=True)
class Step:
    """A case that does what it is told."""

    number: int
    act: str = "measure"
    ended: Event = field(default_factory=Event, compare=False)

    dtype_name = "float32"

    @property
    def config(self) -> Config:
        return {"step": self.number}


def measure(step: Step, machine: Machine) -> Iterator[Measurement]:
    value = Quantiles.of([float(step.number)])
    yield Measurement("fake", "ours", "eager", "float32", step.config, "time_ms", value)
    if step.act == "fail":
        raise RuntimeError("this shape is not supported")
    if step.act == "lose the device":
        raise FatalDeviceError("an illegal memory access was encountered")
    if step.act == "hang":
        assert step.ended.wait(30)
    if step.act == "be killed":
        os.kill(os.getpid(), signal.SIGTERM)


def fake(*steps: Step, **facts: object) -> Benchmark:
    return Benchmark(
        "fake",
        measure,
        aims=lambda toy: steps,
        sweep=lambda toy: (),
        sources=("bench/gpu/run.py",),
        tests=(TEST_FILE,),
        **facts,
    )


@pytest.fixture
def tests_pass(monkeypatch):
    outcomes = {"result": "passed"}

    def run_tests(files, **options):
        for file in files:
            outcome = Outcome(f"{file}::test", outcomes["result"], "it is wrong")
            yield FileOutcome(file, (outcome,), "")

    monkeypatch.setattr(correctness, "run_tests", run_tests)
    monkeypatch.setattr(correctness, "test_files", lambda: [TEST_FILE])
    return outcomes


def start(monkeypatch, folder, *steps, options=()):
    monkeypatch.setattr(run, "BENCHMARKS", (fake(*steps),))
    run.main(["--output", str(folder), *options])


def numbers(folder, **options):
    return [
        float(row["value"])
        for row in rows_in(folder, **options)
        if (row["benchmark"], row["metric"]) == ("fake", "time_ms")
    ]


def test_a_run_that_is_killed_keeps_what_it_had_and_goes_on_later(
    tmp_path, monkeypatch, tests_pass
):
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, tmp_path, Step(1), Step(2, "be killed"), Step(3))
    assert stop.value.code == 130
    assert numbers(tmp_path) == [1.0]
    assert list(tmp_path.glob("*.md")), "the summary is written, too"
    start(monkeypatch, tmp_path, Step(1), Step(2), Step(3))
    assert numbers(tmp_path) == [1.0, 2.0, 3.0]


def test_a_case_that_fails_costs_no_other(tmp_path, monkeypatch, tests_pass, capsys):
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, tmp_path, Step(1, "fail"), Step(2))
    assert stop.value.code == 1
    assert numbers(tmp_path) == [1.0, 2.0]
    assert "this shape is not supported" in capsys.readouterr().out


def test_a_run_whose_device_is_lost_goes_on_in_a_new_process(tmp_path, monkeypatch, tests_pass):
    started = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: started.append(arguments))
    options = ("--again", "--minutes", "7")
    with pytest.raises(SystemExit):
        start(
            monkeypatch,
            tmp_path,
            Step(1),
            Step(2, "lose the device"),
            Step(3),
            options=options,
        )
    assert numbers(tmp_path) == [1.0, 2.0]
    ((_, *arguments),) = started
    # It must end when this one had to, and not repeat what this one has done.
    assert arguments[:3] == ["-m", "bench", "gpu"]
    assert "--deadline" in arguments
    assert "--since" in arguments
    assert "--again" not in arguments
    monkeypatch.setattr(run, "BENCHMARKS", (fake(Step(1), Step(2), Step(3)),))
    with pytest.raises(SystemExit):
        run.main(arguments[3:])
    assert numbers(tmp_path) == [1.0, 2.0, 3.0]


def test_an_error_that_takes_the_device_along_does_not_let_the_other_cases_fail(
    tmp_path, monkeypatch, tests_pass
):
    def reason(error, device):
        raise FatalDeviceError(str(error))

    started = []
    monkeypatch.setattr(run, "reason", reason)
    monkeypatch.setattr(os, "execv", lambda path, arguments: started.append(arguments))
    with pytest.raises(SystemExit):
        start(monkeypatch, tmp_path, Step(1), Step(2, "fail"), Step(3))
    assert numbers(tmp_path) == [1.0, 2.0]
    (failure,) = (row for row in rows_in(tmp_path) if row["metric"] == "failure")
    assert failure["note"] == "the device was lost: this shape is not supported"
    assert len(started) == 1


def test_a_case_that_hangs_is_given_up_and_the_rest_goes_on_in_a_new_process(
    tmp_path, monkeypatch, tests_pass
):
    hanging = Step(1, "hang")
    kept = []

    def execute(path, arguments):
        kept.append((arguments, rows_in(tmp_path)))
        hanging.ended.set()

    monkeypatch.setattr(os, "execv", execute)
    monkeypatch.setattr(run, "BENCHMARKS", (fake(hanging, limit=0.2),))
    run.main(["--output", str(tmp_path)])
    ((arguments, rows),) = kept
    assert "--deadline" in arguments
    (failure,) = (row for row in rows if row["metric"] == "failure")
    assert failure["note"] == "given up after 0 s"
    # It is done: the new process does not try it again.
    metrics = [row["metric"] for row in rows if row["benchmark"] == "fake"]
    assert metrics == ["time_ms", "failure", "wall_s"]


def test_a_case_that_outlasts_the_run_is_left_for_another_with_what_it_measured(
    tmp_path, monkeypatch, tests_pass
):
    hanging, kept = Step(1, "hang"), []

    def execute(path, arguments):
        kept.append(rows_in(tmp_path))
        hanging.ended.set()

    monkeypatch.setattr(os, "execv", execute)
    monkeypatch.setattr(run, "_OVERTIME", 0.2)
    monkeypatch.setattr(run.Run, "_left", lambda self: 0.1)
    monkeypatch.setattr(run, "BENCHMARKS", (fake(hanging, limit=60.0),))
    run.main(["--output", str(tmp_path)])
    (rows,) = kept
    # It is not done: another run begins it anew.
    assert [row["metric"] for row in rows if row["benchmark"] == "fake"] == ["time_ms"]


def test_a_sanitizer_that_was_cut_off_is_run_again(tmp_path, monkeypatch):
    verdicts = [correctness.unavailable(f"{correctness.OUT_OF_TIME} after 150 s")]
    verdicts.append(correctness.unavailable("the device is not supported"))
    monkeypatch.setattr(correctness, "unavailable", lambda why: verdicts[0])
    for left in (1, 0, 0):
        run.main(["--only", "sanitizer", "--output", str(tmp_path)])
        found = [row for row in rows_in(tmp_path) if row["benchmark"] == correctness.SANITIZER]
        assert sum(row["metric"] == "wall_s" for row in found) == (not left)
        del verdicts[:-1]


def test_the_time_of_a_run_counts_from_where_the_process_began(monkeypatch):
    monkeypatch.setattr(bench, "began", 1000.0)
    assert parse(["--minutes", "2"], toy=True).deadline == 1120.0


def test_where_it_is_late_no_test_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(run.Run, "_left", lambda self: -1.0)
    monkeypatch.setattr(correctness, "run_tests", lambda *args, **options: pytest.fail("begun"))
    run.main(["--only", "tests", "--output", str(tmp_path)])
    assert not any(row["benchmark"] == correctness.NAME for row in rows_in(tmp_path))


def test_what_cases_share_is_freed_before_those_of_another_benchmark(
    tmp_path, monkeypatch, tests_pass
):
    log = []
    first = fake(Step(1), Step(2), release=lambda: log.append("released"))

    def noted(step, machine):
        log.append(step.number)
        yield from measure(step, machine)

    both = replace(first, measure=noted), replace(fake(Step(3)), name="other", measure=noted)
    monkeypatch.setattr(run, "BENCHMARKS", both)
    run.main(["--output", str(tmp_path)])
    assert log == [1, 2, "released", 3]


def test_no_time_is_taken_of_an_op_whose_tests_fail(tmp_path, monkeypatch, tests_pass, capsys):
    tests_pass["result"] = "failed"
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, tmp_path, Step(1))
    assert stop.value.code == 1
    assert numbers(tmp_path) == []
    assert f"not timed, because {TEST_FILE} did not pass" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        start(monkeypatch, tmp_path, Step(1), options=["--unverified"])
    assert numbers(tmp_path) == []
    assert numbers(tmp_path, unverified=True) == [1.0]


def test_times_alone_bring_the_tests_that_they_depend_on(tmp_path, monkeypatch, tests_pass):
    tests_pass["result"] = "failed"
    with pytest.raises(SystemExit):
        start(monkeypatch, tmp_path, Step(1), options=["--only", "speed"])
    assert numbers(tmp_path) == []


def test_nothing_is_begun_after_the_time_is_over(tmp_path, monkeypatch, tests_pass):
    monkeypatch.setattr(run.Run, "_left", lambda self: -1.0)
    start(monkeypatch, tmp_path, Step(1), options=["--only", "speed"])
    assert numbers(tmp_path) == []


def test_again_repeats_what_is_stored(tmp_path, monkeypatch, tests_pass):
    start(monkeypatch, tmp_path, Step(1))
    before = rows_in(tmp_path)
    monkeypatch.setattr("bench.results.utc_now", lambda: "2999-01-01T00:00:00+00:00")
    monkeypatch.setattr("bench.gpu.options.utc_now", lambda: "2999-01-01T00:00:00+00:00")
    start(monkeypatch, tmp_path, Step(1), options=["--again"])
    dates = {row["date"] for row in rows_in(tmp_path) if row["benchmark"] == "fake"}
    assert dates == {"2999-01-01T00:00:00+00:00"}
    assert len(rows_in(tmp_path)) == len(before)
