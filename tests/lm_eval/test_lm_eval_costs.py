"""Cost records: kept across runs, and added up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from boe.lm_eval.costs import CostLog, CostRecord, read_costs, summarise, summary_lines

RECORD = CostRecord(
    kind="generate_until",
    task="toy",
    doc=0,
    choice=0,
    repeat=0,
    key=1,
    prompt_tokens=2,
    tokens=3,
    stopped=True,
    steps=3,
    nfe_forward=4.0,
    n_backward=1.0,
    flop_equiv=4.5,
    seconds=0.1,
)


def test_a_run_that_goes_on_appends_to_what_is_there(tmp_path: Path) -> None:
    CostLog(str(tmp_path), "f").add(RECORD)
    CostLog(str(tmp_path), "f").add(replace(RECORD, doc=1))
    CostLog(str(tmp_path), "f", rank=1).add(replace(RECORD, doc=2))
    CostLog(str(tmp_path), "g").add(replace(RECORD, doc=3))
    assert [record.doc for record in read_costs(tmp_path, "f")] == [0, 1, 2]


def test_of_a_request_that_was_run_again_the_last_record_counts(tmp_path: Path) -> None:
    log = CostLog(str(tmp_path), "f")
    log.add(RECORD)
    log.add(replace(RECORD, nfe_forward=9.0))
    assert [record.nfe_forward for record in read_costs(tmp_path, "f")] == [9.0]


def test_the_torn_line_of_a_killed_run_is_left_out_and_cut(tmp_path: Path) -> None:
    log = CostLog(str(tmp_path), "f")
    log.add(RECORD)
    whole = log.path.read_text()
    log.path.write_text(whole + whole[:30])
    assert len(read_costs(tmp_path, "f")) == 1
    CostLog(str(tmp_path), "f").add(replace(RECORD, doc=1))
    assert len(read_costs(tmp_path, "f")) == 2


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    log = CostLog(str(tmp_path), "f")
    log.add(RECORD)
    log.path.write_text(log.path.read_text() + '{"kind": 3}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*costs_f_rank0.jsonl is no cost record"):
        read_costs(tmp_path, "f")


def test_means_are_taken_per_task(tmp_path: Path) -> None:
    records = [
        RECORD,
        replace(RECORD, doc=1, nfe_forward=8.0),
        replace(RECORD, task="other", seconds=2.0),
    ]
    means = summarise(records)
    assert list(means) == ["other", "toy"]
    assert (means["toy"]["requests"], means["toy"]["nfe_forward"]) == (2, 6)
    log = CostLog(str(tmp_path), "f")
    for record in records:
        log.add(record)
    lines = summary_lines(str(tmp_path), "f")
    assert "|toy|2|0|6.00|1.00|4.50|0.10|" in lines


def test_without_a_folder_records_stay_in_memory() -> None:
    log = CostLog(None, "f")
    log.add(RECORD)
    assert (log.path, log.records) == (None, [RECORD])
