"""What a GPU run has stored, and when it counts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from bench.gpu import correctness, store
from bench.gpu.correctness import OUT_OF_TIME, FileOutcome, _Processes
from bench.gpu.outcomes import Outcome, read_outcomes
from bench.gpu.store import Key, Store, digest, file_stem
from bench.results import Environment, Measurement, Quantiles

DEVICE = Environment("NVIDIA H100 80GB HBM3", triton_version="3.6.0")


@pytest.fixture
def key(tmp_path, monkeypatch):
    """A case that depends on a folder of two files."""
    monkeypatch.setattr(store, "ROOT", tmp_path)
    monkeypatch.setattr(store, "_SHARED", ())
    digest.cache_clear()
    folder = tmp_path / "kernels"
    folder.mkdir()
    for name in ("forward", "backward"):
        (folder / f"{name}.py").write_text(name)
    yield Key("attention", "bfloat16", {"L": 8}, ("kernels",))
    digest.cache_clear()


def row(key, value=1.0, provider="ours"):
    once = Quantiles.of([value])
    return Measurement(key.benchmark, provider, "eager", key.dtype, key.config, "time_ms", once)


def opened(tmp_path, environment=DEVICE, since=""):
    return Store(tmp_path / "results", "h100", environment, since)


def test_a_case_is_done_once_it_is_stored_whole(tmp_path, key):
    opened(tmp_path).keep(key, [row(key)], seconds=None)
    assert opened(tmp_path).seconds(key) is None
    opened(tmp_path).keep(key, [row(key)], seconds=2.5)
    assert opened(tmp_path).seconds(key) == 2.5
    assert opened(tmp_path).seconds(replace(key, config={"L": 9})) is None


@pytest.mark.parametrize(
    "other",
    [
        {"hardware": "NVIDIA H200"},
        {"torch_version": "9.9"},
        {"triton_version": "9.9"},
    ],
    ids=str,
)
def test_other_hardware_or_versions_are_another_case(other, tmp_path, key):
    opened(tmp_path).keep(key, [row(key)], seconds=2.5)
    assert opened(tmp_path, replace(DEVICE, **other)).seconds(key) is None


def test_another_commit_of_the_same_sources_is_the_same_case(tmp_path, key):
    opened(tmp_path, replace(DEVICE, commit="aaa")).keep(key, [row(key)], seconds=2.5)
    assert opened(tmp_path, replace(DEVICE, commit="bbb-dirty")).seconds(key) == 2.5


def test_a_change_of_a_source_makes_its_own_results_stale(tmp_path, key):
    others = replace(key, benchmark="entropy", sources=("other",))
    for each in (key, others):
        opened(tmp_path).keep(each, [row(each)], seconds=2.5)
    (tmp_path / "kernels" / "forward.py").write_text("better")
    digest.cache_clear()
    assert opened(tmp_path).seconds(key) is None
    assert opened(tmp_path).seconds(others) == 2.5


def test_a_case_that_is_measured_again_leaves_nothing_of_its_past(tmp_path, key):
    here = opened(tmp_path)
    elsewhere = opened(tmp_path, replace(DEVICE, hardware="NVIDIA H200"))
    elsewhere.keep(key, [row(key, 7.0)], seconds=1.0)
    here = opened(tmp_path)
    here.keep(key, [row(key), row(key, provider="a rival that is gone")], seconds=1.0)
    here.keep(key, [row(key, 3.0)], seconds=1.0)
    times = [m for m in here.measurements if m.metric == "time_ms"]
    assert [(m.provider, m.value.p50) for m in times] == [("ours", 3.0)]
    kept = [m for m in opened(tmp_path, elsewhere.environment).measurements if m.value]
    assert 7.0 in [m.value.p50 for m in kept]


def test_results_from_before_a_date_do_not_count(tmp_path, key):
    opened(tmp_path, replace(DEVICE, date="2026-01-01T00:00:00+00:00")).keep(key, [], 1.0)
    assert opened(tmp_path, since="2026-01-01T00:00:00+00:00").seconds(key) == 1.0
    assert opened(tmp_path, since="2026-01-01T00:00:01+00:00").seconds(key) is None


def test_the_digest_of_the_sources_of_every_benchmark_sees_a_file():
    from bench.gpu.correctness import SANITIZER_KEY, key_of, test_files
    from bench.gpu.run import BENCHMARKS

    sources = {source for benchmark in BENCHMARKS for source in benchmark.sources}
    sources |= {source for file in test_files() for source in key_of(file).sources}
    sources |= set(SANITIZER_KEY.sources)
    assert not [source for source in sources if not (store.ROOT / source).exists()]
    assert {test for benchmark in BENCHMARKS for test in benchmark.tests} <= set(test_files())


def test_a_device_has_a_file_name():
    assert file_stem("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert file_stem("AMD EPYC, 2 threads") == "amd-epyc-2-threads"


def test_outcomes_that_were_cut_off_are_left_out(tmp_path):
    path = tmp_path / "outcomes"
    assert read_outcomes(path) == []
    path.write_text('{"test": "a", "result": "passed", "reason": ""}\n{"test": "b", "res')
    assert [outcome.test for outcome in read_outcomes(path)] == ["a"]


def test_a_file_that_was_cut_off_goes_on_behind_what_had_passed(tmp_path, monkeypatch):
    monkeypatch.setattr(correctness, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.fspath(Path(correctness.__file__).parents[2]))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    file = "test_some.py"
    (tmp_path / file).write_text(
        "def test_a(): assert 0\ndef test_b(): assert 0\ndef test_c(): pass\n"
    )
    found = (Outcome(f"{file}::test_a", "passed", ""), Outcome(f"{file}::test_b", "failed", "no"))
    cut = FileOutcome(file, found, f"{OUT_OF_TIME} after 1 s")
    known = correctness.passed_before(cut.measurements())
    assert known == [found[0]]

    options = {"on_gpu": True, "seconds": 100, "at_once": 1, "log": tmp_path / "log"}
    (whole,) = correctness.run_tests({file: known}, **options)
    assert whole.is_complete, whole.trouble
    results = {outcome.test.split("::")[1]: outcome.result for outcome in whole.outcomes}
    assert results == {"test_a": "passed", "test_b": "failed", "test_c": "passed"}
    assert correctness.passed_before(whole.measurements()) == []


def test_a_process_that_takes_too_long_is_stopped_and_logged(tmp_path):
    log = tmp_path / "log"
    command = ["bash", "-c", "echo begun; sleep 60"]
    trouble = _Processes(log).run(command, seconds=0.5)
    assert trouble.startswith("stopped for want of time")
    assert "begun" in log.read_text()


def test_a_process_that_dies_says_how(tmp_path):
    log = tmp_path / "log"
    trouble = _Processes(log).run(["bash", "-c", "echo oops; kill -SEGV $$"], seconds=30)
    assert trouble == "exit status -11: oops"
    assert _Processes(log).run(["bash", "-c", "exit 1"], seconds=30) == ""
