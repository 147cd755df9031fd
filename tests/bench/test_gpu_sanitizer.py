"""The sanitizer's part of the GPU run, with a program that stands in for compute-sanitizer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.gpu import correctness
from bench.gpu.correctness import sanitize

STAND_IN = """#!{python}
import json, sys, time

arguments = sys.argv[1:]
assert arguments[:2] == ["--tool", "memcheck"], arguments
command = arguments[arguments.index("-m") - 1:]
assert command[1:4] == ["-m", "pytest", "tests/gpu"], command
assert command[-2:] == ["-m", "sanitized and not device_only"], command
outcomes = command[command.index("--outcomes") + 1]
{body}
"""
TELLS = """
with open(outcomes, "a") as file:
    for test, result in (("one", "passed"), ("two", "passed"), ("three", "failed")):
        file.write(json.dumps({{"test": test, "result": result, "reason": ""}}) + "\\n")
print("========= ERROR SUMMARY: {errors} errors")
sys.exit({status})
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Makes the program that does what it is told to."""

    def make(body: str) -> Path:
        path = tmp_path / "compute-sanitizer"
        path.write_text(STAND_IN.format(python=sys.executable, body=body))
        path.chmod(0o755)
        monkeypatch.setattr(correctness, "which", lambda name, path=None, p=path: str(p))
        return tmp_path / "log"

    return make


@pytest.mark.parametrize(("errors", "status"), [(0, 1), (2, correctness.FOUND_ERRORS)])
def test_errors_on_the_device_are_counted_and_tests_that_failed_named(errors, status, stand_in):
    log = stand_in(TELLS.format(errors=errors, status=status))
    found = sanitize(60.0, log)
    assert found.value is not None
    assert found.value.p50 == errors
    assert found.note == "2 tests passed under it, 1 failed ['three']"
    assert "ERROR SUMMARY" in log.read_text()


def test_a_device_that_it_refuses_gives_no_verdict_but_the_reason(stand_in):
    log = stand_in("print('Device not supported'); sys.exit(1)")
    found = sanitize(60.0, log)
    assert (found.value, found.note) == (None, "Device not supported")


def test_without_enough_time_there_is_no_verdict(stand_in):
    found = sanitize(0.5, stand_in("time.sleep(60)"))
    assert found.value is None
    assert found.note.startswith(correctness.OUT_OF_TIME)


def test_without_the_program_there_is_no_verdict(monkeypatch, tmp_path):
    monkeypatch.setattr(correctness, "which", lambda name, path=None: None)
    found = sanitize(60.0, tmp_path / "log")
    assert (found.value, found.note) == (None, "compute-sanitizer is not installed")
