"""Results as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from results_of_fakes import BASE, fake_ablation, fake_comparison

from boe.evaluate.equal_cost import Level, Reading
from boe.evaluate.results import comparison_markdown
from boe.evaluate.tables import (
    Table,
    ablation_table,
    equal_cost_table,
    p_text,
    pairs_table,
    pivot_table,
    points,
    records_csv,
    summaries_csv,
    summary_table,
)


def test_markdown_has_a_rule_that_sets_labels_left_and_numbers_right() -> None:
    table = Table(("name", "share"), (("a|b", "1"), ("c", "2")))
    assert table.as_markdown().splitlines() == [
        "| name | share |",
        "| :--- | ---: |",
        "| a\\|b | 1 |",
        "| c | 2 |",
    ]


def test_the_summary_has_a_row_per_sampler_and_setting_and_the_best_in_bold() -> None:
    comparison = fake_comparison()
    table = summary_table(comparison)
    assert len(table.rows) == len(comparison.summaries) == 6
    assert table.columns[4] == "places", "the task's own metric"
    assert table.rows[0][:4] == ("1 per step", "`confidence`", "**50.0 %**", "19–81")
    worse = replace(comparison.summaries[1], accuracy=0.1)
    shown = summary_table(replace(comparison, summaries=(comparison.summaries[0], worse)))
    assert shown.rows[1][2] == "10.0 %"


def test_the_pivot_has_samplers_as_columns_and_a_dash_for_what_was_not_run() -> None:
    comparison = fake_comparison()
    table = pivot_table(replace(comparison, summaries=comparison.summaries[:4]))
    assert table.columns == (
        "setting",
        "`confidence`",
        f"`{BASE}`",
        "`boe:tolerance=none,rho=0.75`",
    )
    assert table.rows[0][1] == "**50.0 %**, 4"
    assert table.rows[1][2:] == ("–", "–")


def test_pairs_can_be_told_from_the_side_of_some_samplers() -> None:
    comparison = fake_comparison()
    assert len(pairs_table(comparison).rows) == 6
    told = pairs_table(comparison, (BASE, "boe:tolerance=none,rho=0.75")).rows
    assert len(told) == 4, "BoE against the others, not against itself"
    assert {row[2] for row in told} == {"`confidence`"}
    assert told[0][7].startswith("+"), "BoE costs more"


def test_readings_at_equal_cost_show_difference_interval_and_kind() -> None:
    readings = (
        Reading("a", "interpolated", 0.5, (0.4, 0.6), None, None),
        Reading("b", "dearest", 0.75, (0.7, 0.8), 0.25, (0.1, 0.4)),
        Reading("c", "none", None, None, None, None),
    )
    level = Level("flop_equiv", 12.0, "a at 3 per step", "a", 9, readings)
    table = equal_cost_table(replace(fake_comparison(), equal_cost=(level,)))
    assert table.columns == ("cost in forwards", "`a`", "`b`", "`c`")
    assert table.rows == (
        ("12.0 (a at 3 per step)", "50.0 %", "**75.0 %*** (+25.0 [+10.0, +40.0])", "–"),
    )


def test_an_ablation_names_base_differences_and_refusals() -> None:
    rows = ablation_table(fake_ablation()).rows
    shown = {row[0]: row for row in rows}
    assert shown["rho = 0.5 (base)"][4:7] == ("", "", "")
    assert shown["rho = 0.75"][5] != ""
    refused = shown["active = candidates"]
    assert refused[2].startswith("refused: the zero-gradient combination")
    assert len({len(row) for row in rows}) == 1


def test_csv_has_a_row_per_record_and_can_be_read_back() -> None:
    comparison = fake_comparison()
    rows = list(csv.DictReader(io.StringIO(records_csv(comparison.records))))
    assert len(rows) == 36
    assert rows[0]["sampler"] == "confidence"
    assert rows[0]["setting"] == "1 per step"
    assert [row["correct"] for row in rows[:2]] == ["1", "0"]
    assert {row["places"] for row in rows} <= {"0.0", "1.0"}
    summaries = list(csv.DictReader(io.StringIO(summaries_csv(comparison))))
    assert [float(row["accuracy"]) for row in summaries] == [
        summary.accuracy for summary in comparison.summaries
    ]


def test_the_document_of_a_comparison_has_every_part() -> None:
    text = comparison_markdown(fake_comparison())
    for heading in ("# fake, hard", "## Accuracy and cost", "## At equal cost: flop_equiv"):
        assert heading in text
    assert "## Paired tests" in text
    assert "Interrupted" not in text
    assert "Interrupted" in comparison_markdown(replace(fake_comparison(), complete=False))


@pytest.mark.parametrize(("share", "text"), [(0.0, "0.0"), (-0.0001, "0.0"), (0.031, "+3.1")])
def test_points_have_a_sign_but_zero_has_none(share: float, text: str) -> None:
    assert points(share) == text


def test_small_p_values_are_told_by_their_size() -> None:
    assert (p_text(0.5), p_text(0.00123), p_text(3.4e-7)) == ("0.500", "0.001", "3e-07")
