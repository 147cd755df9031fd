"""Summaries, pairs and curves, and what they are stored as."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_task import FakeTask

from boe.evaluate import (
    Group,
    Record,
    Run,
    Setting,
    Study,
    analyse,
    comparison_from_json,
    run_study,
)
from boe.evaluate.comparison import SCHEMA
from boe.evaluate.environment import environment
from boe.evaluate.statistics import mcnemar_p_value, sign_flip_p_value, wilson_interval
from boe.files import write_json

RECORDED = Path(__file__).parents[2] / "bench" / "results" / "sudoku-hard.json"
STUDY = Study(
    task="fake",
    difficulty="hard",
    groups=(Group(("confidence", "margin", "entropy"), (Setting(1), Setting(2))),),
    items=6,
)


def record(
    item: int, sampler: str, correct: bool, tokens: int = 1, cost: float = 1.0, seed: int = 0
) -> Record:
    metrics = {"cells": float(correct)}
    return Record(
        item, sampler, Setting(tokens), seed, correct, "1", 2, cost, 0.0, cost, 0.5, metrics
    )


def run_of(records: list[Record], study: Study = STUDY) -> Run:
    return Run(study, environment(), "model", records, {}, complete=True)


def test_summaries_are_means_with_intervals() -> None:
    records = [record(k, "confidence", k < 3, cost=k + 1.0) for k in range(4)]
    summary = analyse(run_of(records)).summaries[0]
    assert (summary.sampler, summary.setting, summary.items) == ("confidence", Setting(1), 4)
    assert summary.accuracy == summary.metrics["cells"] == 0.75
    assert summary.interval == wilson_interval(3, 4)
    assert summary.nfe_forward == summary.flop_equiv == 2.5
    assert (summary.n_backward, summary.seconds, summary.steps) == (0.0, 0.5, 2.0)
    low, high = summary.flop_equiv_interval
    assert 1.0 <= low < 2.5 < high <= 4.0
    assert summary.seconds_interval == pytest.approx((0.5, 0.5))


def test_pairs_count_what_only_one_of_two_solved_on_shared_items() -> None:
    records = [record(k, "confidence", k in (0, 1, 2), cost=3.0) for k in range(6)]
    records += [record(k, "margin", k in (2, 3)) for k in range(4)]  # interrupted after four
    records += [record(k, "margin", True, tokens=2) for k in range(2)]
    (pair,) = analyse(run_of(records)).pairs
    assert (pair.setting, pair.first, pair.second) == (Setting(1), "confidence", "margin")
    assert (pair.items, pair.only_first, pair.only_second) == (4, 2, 1)
    assert pair.p_value == mcnemar_p_value(2, 1)
    assert pair.accuracy == 0.25
    assert pair.accuracy_interval[0] < 0.0 < pair.accuracy_interval[1]
    assert pair.flop_equiv == pytest.approx(2.0)
    assert pair.flop_equiv_interval == pytest.approx((2.0, 2.0))


def test_a_pair_can_be_told_from_the_other_side() -> None:
    records = [record(k, "confidence", k < 4, cost=3.0) for k in range(6)]
    records += [record(k, "margin", k == 5) for k in range(6)]
    (pair,) = analyse(run_of(records)).pairs
    other = pair.swapped()
    assert (other.first, other.only_first, other.only_second) == ("margin", 1, 4)
    assert (other.accuracy, other.flop_equiv) == (-pair.accuracy, -pair.flop_equiv)
    assert other.accuracy_interval == (-pair.accuracy_interval[1], -pair.accuracy_interval[0])
    assert other.swapped() == pair


def test_several_seeds_are_tested_item_by_item() -> None:
    study = replace(STUDY, seeds=(0, 1))
    right = {"confidence": {0: (0, 1), 1: (0,), 2: (0, 1)}, "margin": {0: (1,), 2: ()}}
    records = [
        record(item, sampler, seed in solved.get(item, ()), seed=seed)
        for sampler, solved in right.items()
        for seed in (0, 1)
        for item in range(4)
    ]
    comparison = analyse(run_of(records, study))
    (pair,) = comparison.pairs
    assert (pair.only_first, pair.only_second) == (4, 0)
    assert pair.p_value == sign_flip_p_value([1, 1, 2, 0])
    assert comparison.summaries[0].accuracy == 5 / 8
    assert comparison.summaries[0].seeds == 2


def test_items_that_one_seed_has_not_come_to_are_left_out() -> None:
    study = replace(STUDY, seeds=(0, 1))
    records = [record(k, "confidence", True) for k in range(3)]
    records += [record(k, "confidence", False, seed=1) for k in range(2)]
    (summary,) = analyse(run_of(records, study)).summaries
    assert (summary.items, summary.accuracy) == (2, 0.5)


def test_residual_curves_are_means_over_items_that_keep_their_last_values() -> None:
    study = replace(STUDY, groups=(Group(("confidence",), (Setting(2),)),), traced=4)
    (curve,) = analyse(run_study(study, FakeTask())).residual
    assert (curve.sampler, curve.setting, curve.items) == ("confidence", Setting(2), 4)
    assert curve.cost == (0.0, 1.0, 2.0)
    assert curve.entropy[0] > curve.entropy[1] > curve.entropy[2] == 0.0


def test_a_run_that_came_to_nothing_has_no_results() -> None:
    comparison = analyse(run_of([]))
    assert (comparison.summaries, comparison.pairs, comparison.equal_cost) == ((), (), ())


# --- stored ---------------------------------------------------------------------------


def test_the_json_form_has_the_documented_keys() -> None:
    comparison = analyse(run_study(replace(STUDY, traced=2), FakeTask()))
    content = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
    assert list(content) == [
        "schema",
        "complete",
        "study",
        "environment",
        "denoiser",
        "summary",
        "pairs",
        "equal_cost",
        "standing",
        "residual_entropy",
        "records",
    ]
    assert content["schema"] == SCHEMA == "boe/compare/2"
    assert content["complete"] is True
    assert set(content["environment"]) == {"hardware", "threads", "torch", "python"}
    assert len(content["records"]) == 36
    costs = {"nfe_forward", "n_backward", "flop_equiv", "seconds"}
    cell = {"sampler", "setting", "seed"}
    assert set(content["records"][0]) == costs | cell | {
        *("item", "correct", "answer", "steps", "metrics"),
    }
    assert set(content["summary"][0]) == costs | {
        *("sampler", "curve", "setting", "items", "seeds", "accuracy", "interval", "steps"),
        *("flop_equiv_interval", "seconds_interval", "metrics"),
    }
    assert set(content["pairs"][0]) == {
        *("setting", "first", "second", "items", "only_first", "only_second", "p_value"),
        *("accuracy", "accuracy_interval", "flop_equiv", "flop_equiv_interval"),
        *("seconds", "seconds_interval"),
    }
    assert set(content["equal_cost"][0]) == {
        *("axis", "cost", "origin", "reference", "items", "readings"),
    }
    assert set(content["standing"][0]) == {"sampler", "setting", "accuracy", "costs", "best"}
    best = content["standing"][0]["best"]["flop_equiv"]
    assert set(best) == {"names", "accuracy", "ahead", "interval"}
    assert set(content["equal_cost"][0]["readings"][0]) == {
        *("curve", "kind", "accuracy", "interval", "difference", "difference_interval"),
    }
    assert set(content["residual_entropy"][0]) == {
        *("sampler", "setting", "items", "entropy", "cost"),
    }


def test_a_comparison_survives_json_with_and_without_records() -> None:
    comparison = analyse(run_study(replace(STUDY, traced=2, seeds=(0, 1)), FakeTask()))
    stored = json.loads(json.dumps(comparison.as_json()))
    assert comparison_from_json(stored) == comparison
    short = json.loads(json.dumps(comparison.as_json(records=False)))
    assert comparison_from_json(short) == replace(comparison, records=())


def test_version_1_is_still_read() -> None:
    old = {
        "schema": "boe/compare/1",
        "complete": True,
        "settings": {
            **{"task": "sudoku", "difficulty": "hard", "puzzles": 2},
            **{"seed": 7, "temperature": 0.0, "batch": 50},
        },
        "environment": environment(),
        "summary": [],
        "pairs": [],
        "records": [
            {
                **{"item": item, "sampler": sampler, "tokens_per_step": 3, "correct": item == 0},
                **{"answer": "1", "steps": 2, "nfe_forward": 2.0, "n_backward": 0.0},
                **{"flop_equiv": 2.0, "seconds": 0.1},
            }
            for sampler in ("confidence", "boe")
            for item in (0, 1)
        ],
    }
    comparison = comparison_from_json(old)
    assert comparison.study.item_seed == 7
    assert [(s.sampler, s.setting, s.accuracy) for s in comparison.summaries] == [
        ("confidence", Setting(3), 0.5),
        ("boe", Setting(3), 0.5),
    ]
    assert len(comparison.pairs) == 1


def test_the_committed_comparison_is_read_whatever_its_version() -> None:
    content = json.loads(RECORDED.read_text())
    comparison = comparison_from_json(content)
    assert comparison.complete
    assert {"confidence", "boe"} <= {summary.sampler for summary in comparison.summaries}


def test_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schema must be boe/compare/2 or .*, got 'boe/solve/1'"):
        comparison_from_json({"schema": "boe/solve/1"})


def test_the_environment_names_the_hardware() -> None:
    where = environment()
    assert where["hardware"]
    assert where["threads"] >= 1


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1, "rows": [{"x": 1}, {"x": 2}], "none": []})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("inf")})
    assert json.loads(path.read_text()) == {"a": 1, "rows": [{"x": 1}, {"x": 2}], "none": []}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
