"""README.md shows what was measured."""

from __future__ import annotations

import shutil

import pytest

from bench.readme import DOCUMENTS, README, filled
from bench.results import RESULTS
from boe.evaluate.document import fill_document


def test_every_table_of_the_readme_holds_the_committed_results() -> None:
    assert README.read_text(encoding="utf-8").count("<!-- bench: ") == 4
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert "<!-- bench: " in text
        assert filled(text) == text, f"{document.name}: run python -m bench readme"


def test_the_comparison_in_the_readme_is_the_committed_one() -> None:
    report = fill_document(README, figures=False)
    assert "bench/results/sudoku-hard.json" in report.text
    assert not report.stale, "run boe report README.md"
    assert not report.missing


def test_a_changed_result_changes_the_table(tmp_path) -> None:
    for file in RESULTS.glob("*-cpu.csv"):
        shutil.copy(file, tmp_path)
    step = tmp_path / "step-cpu.csv"
    old = next(line for line in step.read_text().splitlines() if "replay/forward,step" in line)
    value = old.rpartition(",ratio,")[2].split(",")[2]
    assert f",{value}," in old
    step.write_text(step.read_text().replace(old, old.replace(f",{value},", ",7.77,")))
    section = "<!-- bench: step -->\n<!-- /bench -->"
    assert "7.77" in filled(section, tmp_path)
    assert "7.77" not in filled(section)


def test_a_missing_result_and_an_unknown_section_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="no ratio of dense/ours"):
        filled("<!-- bench: attention -->\n<!-- /bench -->", tmp_path)
    with pytest.raises(ValueError, match="section must be one of machine, attention"):
        filled("<!-- bench: speed -->\n<!-- /bench -->")
