"""What all binaries need, as it is recorded and as docs/kernels.md tells it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import binary_record, resources
from bench.__main__ import main
from bench.binaries import Binary
from bench.binary_record import BEGIN, END, docs_section, read_record, write_record
from bench.kernels_doc import DOCS
from bench.units import TARGETS
from boe_kernels._triton import ARCHITECTURES

PLAIN = Binary(
    "op", "a case", "a_kernel", "sm_90", "BLOCK=1", warps=8, registers=64, spilled=0, shared=2048
)
SPILLING = replace(PLAIN, case="another, window", spilled=8, registers=255)


def test_what_is_recorded_is_read_again_and_other_versions_stay(tmp_path):
    write_record(tmp_path, "3.6.0", [SPILLING])
    write_record(tmp_path, "3.9.0", [PLAIN, SPILLING])
    assert read_record(tmp_path) == {"3.6.0": [SPILLING], "3.9.0": [PLAIN, SPILLING]}


def test_binaries_of_other_architectures_stay_and_those_made_anew_are_replaced(tmp_path):
    other = replace(PLAIN, architecture="gfx942")
    write_record(tmp_path, "3.9.0", [SPILLING, other])
    write_record(tmp_path, "3.9.0", [PLAIN])
    assert read_record(tmp_path) == {"3.9.0": [other, PLAIN]}


def test_what_does_not_compile_is_not_recorded(tmp_path):
    write_record(tmp_path, "3.9.0", [PLAIN, replace(SPILLING, error="no")])
    assert read_record(tmp_path) == {"3.9.0": [PLAIN]}


def test_the_section_counts_all_binaries_and_names_those_that_spill():
    section = docs_section({"3.9.0": [PLAIN, SPILLING, replace(SPILLING, spilled=4)]})
    assert "| 3.9.0 | sm_90 | 3 | 2 | 2 KB, 227 | 255 |" in section
    assert "| 3.9.0 | sm_90 | a_kernel | another, window | 8 |" in section
    assert "a case" not in section
    assert "None spills." in docs_section({"3.9.0": [PLAIN]})


def test_docs_tell_what_is_recorded():
    text = DOCS.read_text(encoding="utf-8")
    section = text[text.index(BEGIN) : text.index(END) + len(END)]
    assert section == docs_section(read_record()), "run python -m bench resources --record"


def test_every_architecture_is_recorded_and_no_binary_spills_but_one():
    newest = list(read_record().values())[-1]
    assert {binary.architecture for binary in newest} == set(ARCHITECTURES)
    complaints = {(b.architecture, b.kernel, b.case) for b in newest if b.complaint}
    assert complaints <= {("sm_90", "bwd_dkdv_kernel", "split, float16, 80")}


# --- the command --------------------------------------------------------------------


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Where the command records, with a document of its own."""
    document = tmp_path / "kernels.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    monkeypatch.setattr(resources, "FOLDER", tmp_path / "binaries")
    monkeypatch.setattr(resources, "DOCS", document)
    monkeypatch.setattr(resources, "read_record", lambda: read_record(tmp_path / "binaries"))
    monkeypatch.setattr(resources, "gather", lambda *arguments: ([PLAIN, SPILLING], 0))
    return tmp_path


def test_the_command_records_and_brings_the_docs_up_to_date(recorded):
    with pytest.raises(SystemExit):
        main(["resources", "--record", "--kept", str(recorded / "kept.jsonl")])
    assert list(read_record(recorded / "binaries").values()) == [[PLAIN, SPILLING]]
    text = (recorded / "kernels.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "a_kernel | another, window | 8" in text
    assert "old" not in text


@pytest.mark.parametrize(
    "options", [["--op", "entropy"], ["--sample"], ["--architecture", "sm_120"]], ids=str
)
def test_a_part_of_the_binaries_is_not_recorded(options, recorded, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["resources", "--record", *options])
    assert stop.value.code == 2
    assert f"all binaries of one or more of {', '.join(TARGETS)}" in capsys.readouterr().err
    assert binary_record.read_record(recorded / "binaries") == {}
