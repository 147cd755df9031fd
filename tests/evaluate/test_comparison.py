"""Records, summaries, pairs, and what Ctrl-C leaves."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from fake_task import FakeTask

from boe.evaluate import Comparison, Record, compare, evaluate
from boe.evaluate.comparison import SCHEMA, environment, write_json
from boe.evaluate.statistics import mcnemar_p_value, wilson_interval

TASK = FakeTask()


def record(item: int, sampler: str, correct: bool, tokens: int = 1, cost: float = 1.0) -> Record:
    return Record(item, sampler, tokens, correct, "1", 2, cost, 0.0, cost, 0.5)


def run(**options: object) -> Comparison:
    arguments = {
        "samplers": ["confidence", "boe:tolerance=none,rho=0.5"],
        "tokens_per_step": [1, 2],
    }
    return compare(TASK.denoiser(), TASK, TASK.items(5, 0), **{**arguments, **options})


def test_evaluate_judges_every_item_in_order_with_its_cost() -> None:
    records = list(evaluate(TASK.denoiser(), TASK, TASK.items(5, 0), "confidence", 2, batch_size=2))
    assert [r.item for r in records] == [0, 1, 2, 3, 4]
    assert [r.correct for r in records] == [True, False, True, False, True]
    assert {r.answer for r in records} == {"1234"}
    assert {(r.steps, r.nfe_forward, r.n_backward, r.flop_equiv) for r in records} == {(2, 2, 0, 2)}


@pytest.mark.parametrize("sampler", ["random", "boe:tolerance=none,rho=0.5"])
def test_the_batch_size_changes_no_answer_and_no_cost(sampler: str) -> None:
    def outcome(size: int) -> list[tuple]:
        records = evaluate(
            TASK.denoiser(),
            TASK,
            TASK.items(5, 0),
            sampler,
            1,
            seed=3,
            temperature=1.0,
            batch_size=size,
        )
        return [(r.item, r.answer, r.nfe_forward, r.n_backward, r.flop_equiv) for r in records]

    assert outcome(1) == outcome(2) == outcome(5)


def test_compare_runs_every_sampler_at_every_setting_on_the_same_items() -> None:
    seen: list[Record] = []
    comparison = run(on_record=seen.append)
    assert comparison.complete
    assert comparison.records == seen
    assert [(r.tokens_per_step, r.sampler) for r in seen[::5]] == [
        (1, "confidence"),
        (1, "boe:tolerance=none,rho=0.5"),
        (2, "confidence"),
        (2, "boe:tolerance=none,rho=0.5"),
    ]
    assert len(seen) == 20


def test_ctrl_c_keeps_the_records_until_then() -> None:
    seen: list[Record] = []

    def interrupt(record: Record) -> None:
        seen.append(record)
        if len(seen) == 7:
            raise KeyboardInterrupt

    comparison = run(on_record=interrupt)
    assert not comparison.complete
    assert comparison.records == seen
    assert len(seen) == 7
    assert [summary.items for summary in comparison.summaries()] == [5, 2]
    assert comparison.as_json()["complete"] is False


def test_summaries_are_means_with_wilson_intervals() -> None:
    records = [record(k, "a", k < 3, cost=k + 1.0) for k in range(4)]
    summary = Comparison({}, records).summaries()[0]
    assert (summary.sampler, summary.tokens_per_step, summary.items) == ("a", 1, 4)
    assert summary.accuracy == 0.75
    assert summary.interval == wilson_interval(3, 4)
    assert summary.nfe_forward == summary.flop_equiv == 2.5
    assert (summary.n_backward, summary.seconds) == (0.0, 0.5)


def test_pairs_count_what_only_one_of_two_solved_on_shared_items() -> None:
    records = [record(k, "a", k in (0, 1, 2)) for k in range(6)]
    records += [record(k, "b", k in (2, 3)) for k in range(4)]  # interrupted after four
    records += [record(k, "b", True, tokens=2) for k in range(2)]
    pairs = Comparison({}, records).pairs()
    assert len(pairs) == 1
    pair = pairs[0]
    assert (pair.tokens_per_step, pair.first, pair.second) == (1, "a", "b")
    assert (pair.only_first, pair.only_second) == (2, 1)
    assert pair.p_value == mcnemar_p_value(2, 1)


def test_the_json_form_has_the_documented_keys() -> None:
    comparison = run(settings={"task": "fake"})
    content = json.loads(json.dumps(comparison.as_json()))
    assert list(content) == [
        "schema",
        "complete",
        "settings",
        "environment",
        "summary",
        "pairs",
        "records",
    ]
    assert content["schema"] == SCHEMA == "boe/compare/1"
    assert content["complete"] is True
    assert content["settings"] == {"task": "fake"}
    assert set(content["environment"]) == {"hardware", "threads", "torch", "python"}
    assert len(content["records"]) == 20
    assert content["records"][0] == asdict(comparison.records[0])
    costs = {"nfe_forward", "n_backward", "flop_equiv", "seconds"}
    assert set(content["summary"][0]) == costs | {
        "sampler",
        "tokens_per_step",
        "items",
        "accuracy",
        "interval",
    }
    assert set(content["pairs"][0]) == {
        "tokens_per_step",
        "first",
        "second",
        "only_first",
        "only_second",
        "p_value",
    }


def test_the_environment_names_the_hardware() -> None:
    where = environment()
    assert where["hardware"]
    assert where["threads"] >= 1


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
