"""Every benchmark runs, refuses wrong providers and stores what it measured."""

import csv

import pytest
import torch

from bench import attention, entropy, step
from bench.__main__ import main


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("benchmark_name", ["attention", "entropy", "step"])
def test_a_quick_run_stores_times_and_ratios(benchmark_name, tmp_path):
    output = tmp_path / "rows.csv"
    main([benchmark_name, "--quick", "--threads", "1", "--output", str(output)])
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["benchmark"] for row in rows} == {benchmark_name}
    assert {"time_ms", "ratio"} <= {row["metric"] for row in rows}
    assert all(float(row["value"]) > 0 for row in rows if row["value"])


def test_no_time_is_reported_for_wrong_attention_gradients(tmp_path, monkeypatch, capsys):
    right = attention.ours if hasattr(attention, "ours") else attention.TIMED["ours"]
    monkeypatch.setitem(attention.TIMED, "ours", lambda inputs: right(inputs) * 1.01)
    with pytest.raises(SystemExit) as stop:
        main(["attention", "--quick", "--threads", "1", "--output", str(tmp_path / "rows.csv")])
    assert stop.value.code == 1
    assert "wrong results" in capsys.readouterr().out


def test_no_time_is_reported_for_a_wrong_replay(monkeypatch):
    case = step.cases(quick=True)[0]
    run = step.Step.of(case, step.build_denoiser(case.layers, torch.device("cpu")))
    right = step.Step.naive_replay
    monkeypatch.setattr(step.Step, "naive_replay", lambda self, alpha=0.5: 1.01 * right(self))
    with pytest.raises(step.WrongResultError, match="naive replay"):
        step.verify(run)


def test_the_statistics_of_every_provider_agree_before_they_are_timed():
    logits = torch.randn(4, 1000)
    for name in ("entropy", "logsumexp"):
        index = {"entropy": 0, "logsumexp": 1}[name]
        mine, theirs = entropy.ours(logits)[index], entropy.eager(logits)[index]
        assert torch.allclose(mine, theirs, rtol=entropy.STATS_TOLERANCE)
