"""Whole decodes are timed against others of as many steps, and held to their ideal."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from bench import decodes
from bench.__main__ import main
from bench.decodes_tables import decodes_table, shares_table
from bench.readme import filled
from bench.results import Environment, Measurement, Quantiles, save
from bench.session import Options, WrongResultError
from boe.tasks import TASKS

CPU = torch.device("cpu")
SHORT = {"task": "sudoku4", "L": 33, "masks": 16, "batch": 50, "tokens": 1}
LONG = {"task": "sudoku4-scattered", "L": 152, "masks": 16, "batch": 50, "tokens": 1}


@pytest.fixture(scope="module")
def quick_rows(tmp_path_factory) -> list[dict[str, str]]:
    threads, output = torch.get_num_threads(), tmp_path_factory.mktemp("decodes") / "rows.csv"
    main(["decodes", "--quick", "--threads", "1", "--output", str(output)])
    torch.set_num_threads(threads)
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


def measured(shape, ratio: float, ideal: float) -> list[Measurement]:
    """What a run records of one shape, the same of every sampler."""

    def row(spec: str, provider: str, metric: str, value: float) -> Measurement:
        quantiles = Quantiles(value, 0.9 * value, 1.2 * value)
        return Measurement("decodes", provider, spec, "float32", shape, metric, quantiles)

    found = [
        row(spec, part, "share", share)
        for spec in (decodes.RIVAL, *decodes.SAMPLERS)
        for part, share in zip(decodes.PARTS, (0.6, 0.3, 0.1), strict=True)
    ]
    for spec in decodes.SAMPLERS:
        found += [row(spec, decodes.RATIO, "ratio", ratio), row(spec, "ideal", "ideal", ideal)]
    return found


def test_a_quick_run_has_time_ratio_and_ideal_of_every_sampler(quick_rows) -> None:
    found = {(row["mode"], row["metric"]) for row in quick_rows}
    assert {(spec, "time_ms") for spec in (decodes.RIVAL, *decodes.SAMPLERS)} <= found
    for metric in ("ratio", "ideal"):
        assert {spec for spec, name in found if name == metric} == set(decodes.SAMPLERS)


def test_the_ideal_counts_the_rows_that_are_run_again(quick_rows) -> None:
    ideals = {row["mode"]: float(row["value"]) for row in quick_rows if row["metric"] == "ideal"}
    always, paper = ideals["boe:sure=none,tolerance=none"], ideals["boe:preset=paper"]
    # With active="candidates" a quarter of the masked rows are run again, else all of them.
    assert 1.0 < paper < always < 2.0


def test_shares_of_a_decode_add_up_to_it(quick_rows) -> None:
    shares: dict[str, dict[str, float]] = {}
    for row in quick_rows:
        if row["metric"] == "share":
            shares.setdefault(row["mode"], {})[row["provider"]] = float(row["value"])
    for spec, parts in shares.items():
        assert set(parts) == set(decodes.PARTS), spec
        assert sum(parts.values()) == pytest.approx(1.0, abs=1e-4)
        assert all(0.0 <= share < 1.0 for share in parts.values())
    assert shares[decodes.RIVAL]["gradient"] == 0.0
    assert shares["boe:preset=paper"]["gradient"] > 0.0


def test_watching_a_denoiser_leaves_it_alone() -> None:
    denoiser = TASKS["sudoku4"]("hard").denoiser()
    before = dict(vars(denoiser))
    stopwatch = decodes.Stopwatch()
    assert stopwatch.watch(denoiser) is not denoiser
    assert vars(denoiser) == before


def test_decodes_of_another_number_of_steps_are_not_timed(monkeypatch) -> None:
    monkeypatch.setattr(decodes, "SAMPLERS", ("threshold:value=0.5",))
    (case,) = decodes.cases(quick=True)
    options = Options("decodes", CPU, True, Path("none"))
    with pytest.raises(WrongResultError, match="steps, confidence"):
        list(decodes.measure(case, options))


def test_a_gpu_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit, match="the aim is a CPU's"):
        main(["decodes", "--quick", "--device", "cuda"])


def test_a_decode_is_held_to_its_ideal() -> None:
    (target, *_) = decodes.targets(measured(SHORT, ratio=1.2, ideal=1.1))
    assert target.met
    assert target.measured is not None
    assert target.measured.p50 == pytest.approx(1.15 * 1.1 / 1.2)
    assert target.measured.p20 < target.measured.p50 < target.measured.p80
    (target, *_) = decodes.targets(measured(SHORT, ratio=1.3, ideal=1.1))
    assert target.missed


def test_a_long_prompt_has_a_limit_of_its_own() -> None:
    assert len(decodes.targets(measured(SHORT, 1.4, 1.3))) == len(decodes.SAMPLERS)
    found = decodes.targets(measured(LONG, 1.4, 1.3))
    assert [target.met for target in found] == [True, False] * len(decodes.SAMPLERS)
    assert not decodes.has_long_prompt({**LONG, "L": 8 * 16 + 15})
    assert decodes.has_long_prompt({**LONG, "L": 9 * 16})


def test_no_case_would_take_minutes() -> None:
    found = decodes.cases(quick=False)
    assert max(case.rows for case in found) <= decodes.MOST_ROWS
    assert {case.task for case in found} == set(TASKS) - {"prose"}


def test_the_tables_show_ratios_limits_misses_and_shares(tmp_path) -> None:
    rows = [*measured(SHORT, 1.3, 1.1), *measured(LONG, 1.2, 1.1)]
    save(tmp_path / "decodes-cpu.csv", rows, Environment("Some CPU", torch_version="2.13.0"))
    table = decodes_table(tmp_path)
    assert "Some CPU; torch 2.13.0. 8 of 12 limits are kept to" in table
    assert "at most 1.20 times" in table
    assert "| sudoku4 | 33 | 16 | 50 | 1 | **1.30** (1.26) |" in table
    assert "| sudoku4-scattered | 152 | 16 | 50 | 1 | 1.20 (1.26) |" in table
    assert shares_table(tmp_path).count("60 / 30 / 10") == 2 * (1 + len(decodes.SAMPLERS))
    document = "<!-- bench: decodes -->\n<!-- /bench -->"
    assert table in filled(document, tmp_path)


def test_tables_need_results_of_one_machine(tmp_path) -> None:
    with pytest.raises(ValueError, match="one machine, got none"):
        decodes_table(tmp_path)
    for hardware in ("One CPU", "Another CPU"):
        save(tmp_path / "decodes-cpu.csv", measured(SHORT, 1.3, 1.1), Environment(hardware))
    with pytest.raises(ValueError, match=r"Another CPU; .*, One CPU; "):
        shares_table(tmp_path)


def test_a_shape_is_recorded_by_task_and_size(quick_rows) -> None:
    shapes = {row["config"] for row in quick_rows}
    assert [json.loads(shape) for shape in shapes] == [{**SHORT, "batch": 3}]
