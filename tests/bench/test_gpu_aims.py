"""The aims: their bars, how they are judged, and what the docs say of them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from bench import attention, llm_step
from bench.gpu import aims, llm
from bench.gpu.attention import _work
from bench.gpu.roofline import Ceilings
from bench.results import RESULTS, Environment, Measurement, Quantiles, save

DOCS = Path(__file__).parents[2] / "docs" / "kernels.md"
H100 = Ceilings(3.0e12, {torch.bfloat16: 798e12})


def aim(title):
    return next(aim for aim in aims.AIMS if aim.title == title)


def ratio(aim, rival, value):
    quantiles = None if value is None else Quantiles(value, value - 0.1, value + 0.1)
    return Measurement(
        aim.benchmark, f"{rival}/ours", aim.mode, aim.dtype, aim.config, "ratio", quantiles
    )


@pytest.mark.parametrize(("active", "microseconds"), [(64, 14.5), (128, 15.0), (256, 16.1)])
def test_the_floor_of_the_backward_is_the_published_one(active, microseconds):
    shape = attention.Case(torch.bfloat16, 128, 1024, active, 32, 32)
    (work,) = _work(shape, "backward")
    assert 1e3 * H100.floor(work) == pytest.approx(microseconds, abs=0.05)


def test_the_floor_of_the_dense_passes_is_the_published_one():
    shape = attention.Case(torch.bfloat16, 128, 1024, 1024, 32, 32)
    forward, backward = (H100.floor(*_work(shape, mode)) for mode in ("forward", "backward"))
    assert 1e3 * forward == pytest.approx(21.5, abs=0.05)
    assert 1e3 * backward == pytest.approx(53.8, abs=0.05)


def test_grouped_heads_have_a_lower_floor():
    shape = attention.Case(torch.bfloat16, 128, 1024, 64, 28, 4)
    (work,) = _work(shape, "backward")
    # With all rows of dq written.
    assert 1e3 * H100.floor(work) == pytest.approx(4.3, abs=0.1)


def test_the_fastest_rival_counts():
    best = aim("backward against the best that library calls give, eager")
    rows = [ratio(best, "two_call", 2.0), ratio(best, "gathered_aten", 1.4)]
    assert aims.verdict(best, rows) == "1.40×, missed"
    assert aims.verdict(best, rows[:1]) == "2.00×, met"


def test_a_rival_that_could_not_run_does_not_count():
    best = aim("backward against the best that library calls give, graphed")
    rows = [ratio(best, "two_call", 2.0), ratio(best, "flex", None)]
    assert aims.verdict(best, rows) == "2.00×, met"
    assert aims.verdict(best, rows[1:]) == "not measured"


def test_other_shapes_modes_and_launches_do_not_count():
    within = aim("backward within 2× of its floor, graphed")
    right = ratio(within, "roofline", 0.6)
    assert aims.verdict(within, [right]) == "60%, met"
    for change in (
        {"mode": "backward, eager"},
        {"dtype": "float16"},
        {"config": {**within.config, "A": 16}},
        {"benchmark": "entropy"},
        {"metric": "time_ms"},
    ):
        wrong = Measurement(**{**vars(right), **change})
        assert aims.verdict(within, [wrong]) == "not measured"


def test_the_aims_are_those_that_were_set():
    bars = {(aim.title, aim.least) for aim in aims.AIMS}
    assert bars == {
        ("backward within 2× of its floor, graphed", 0.5),
        ("backward against flash's dense one, graphed", 4.0),
        ("backward against the best that library calls give, graphed", 1.5),
        ("backward against the best that library calls give, eager", 1.5),
        ("forward within 10 % of flash's, graphed", 1 / 1.1),
        ("grouped backward against the gathered aten backward, graphed", 2.5),
        ("grouped backward against the gathered aten backward, eager", 2.5),
        ("entropy with gradient", 0.8),
    }
    backward = [aim for aim in aims.AIMS if aim.title.startswith("backward within")]
    assert [aim.config["A"] for aim in backward] == [64, 128, 256]


def test_every_aim_is_measured_by_a_case_of_the_run():
    from bench.gpu.run import BENCHMARKS

    cases = {
        (benchmark.name, case.dtype_name, str(case.config))
        for benchmark in BENCHMARKS
        # A whole step has targets of its own.
        if benchmark.name != llm_step.NAME
        for case in benchmark.aims(False)
    }
    wanted = {(aim.benchmark, aim.dtype, str(aim.config)) for aim in aims.AIMS}
    assert wanted == cases


def test_the_docs_say_of_every_aim_what_was_measured():
    text = DOCS.read_text()
    section = text[text.index(aims.BEGIN) : text.index(aims.END) + len(aims.END)]
    assert section == aims.docs_section(RESULTS), "run `python -m bench gpu --docs`"


def test_the_docs_section_follows_the_results(tmp_path):
    within = aim("backward within 2× of its floor, graphed")
    gpu = Environment("NVIDIA H100 80GB HBM3")
    save(tmp_path / "nvidia-h100.csv", [ratio(within, "roofline", 0.55)], gpu)
    save(tmp_path / "nvidia-h100-unverified.csv", [ratio(within, "roofline", 0.1)], gpu)
    save(tmp_path / "attention-cpu.csv", [ratio(within, "roofline", 0.2)], Environment("CPU"))
    counted = Measurement("memory", "ours", "", "", {}, "bytes", Quantiles.of([1.0]))
    save(tmp_path / "memory.csv", [counted], Environment("counted, on no device"))
    section = aims.docs_section(tmp_path)
    assert "| NVIDIA H100 80GB HBM3 |" in section
    assert "| 55%, met |" in section
    assert f"{len(aims.AIMS) - 1} are unmeasured" in section
    assert "10%" not in section
    assert "counted" not in section


def test_no_committed_file_of_results_was_measured_in_spite_of_failing_tests():
    for path in RESULTS.glob("*.csv"):
        assert not path.stem.endswith("-unverified"), path
        with path.open(newline="") as file:
            assert not [row for row in csv.DictReader(file) if row["metric"] == "failure"], path


def test_every_target_of_a_whole_step_is_measured_by_a_case_of_the_run():
    steps = [*llm.aims(False), *llm.sweep(False)]
    assert len(steps) == len({(str(case), case.step.timed) for case in steps})
    once = Quantiles.of([1.0])
    rows = [
        Measurement(
            llm_step.NAME,
            f"{llm_step.DEFAULT}/confidence",
            "step",
            case.dtype_name,
            case.config,
            "over_confidence",
            once,
        )
        for case in steps
        if case.step.timed
    ]
    targets = llm_step.targets(rows)
    assert targets
    assert all(target.met for target in targets)
