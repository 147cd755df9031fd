"""Execution of model-written programs: what passes, what fails, and what is held back."""

from __future__ import annotations

from pathlib import Path

import pytest

from boe.tasks.scoring.code import (
    HumanEvalProblem,
    MbppProblem,
    extract_code,
    score_humaneval,
    score_mbpp,
)
from boe.tasks.scoring.pc_sampler import pc_humaneval
from boe.tasks.scoring.sandbox import Execution, SandboxLimits, run_program

LIMITS = SandboxLimits(seconds=20, memory_bytes=1 << 28, file_bytes=1 << 16)

HALVE = HumanEvalProblem(
    'import math\n\n\ndef halve(x: float) -> float:\n    """Half of x."""\n',
    "def check(candidate):\n    assert candidate(4) == 2\n    assert candidate(-1) == -0.5\n",
    "halve",
)
ADD = MbppProblem(("assert add(1, 2) == 3", "assert add(-1, 1) == 0"), setup="zero = 0")


def run(source: str, limits: SandboxLimits = LIMITS) -> Execution:
    return run_program(source, allow_execution=True, limits=limits)


# --- permission and settings ------------------------------------------------------------


def test_nothing_runs_unless_it_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="allow_execution=True"):
        run_program("pass")
    with pytest.raises(PermissionError, match="allow_execution=True"):
        score_humaneval(HALVE, "    return x / 2")
    with pytest.raises(PermissionError, match="allow_execution=True"):
        score_mbpp(ADD, "def add(a, b): return a + b")
    with pytest.raises(PermissionError, match="allow_execution=True"):
        pc_humaneval(HALVE, "def halve(x): return x / 2")
    with pytest.raises(PermissionError, match="allow_execution=True"):
        run_program("pass", allow_execution="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 0}, "seconds must be positive, got 0"),
        ({"seconds": float("inf")}, "seconds must be positive, got inf"),
        ({"memory_bytes": 1}, "memory_bytes must be at least 64 MiB, got 1"),
        ({"file_bytes": 1}, "file_bytes must be at least 4 KiB, got 1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SandboxLimits(**settings)


def test_a_process_that_cannot_be_confined_is_an_error_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "confinement.py"
    broken.write_text("raise OSError('no limits here')")
    monkeypatch.setattr("boe.tasks.scoring.sandbox._CONFINEMENT", broken)
    with pytest.raises(RuntimeError, match=r"could not be set up: [\s\S]*no limits here"):
        run("pass")


# --- outcomes ---------------------------------------------------------------------------


def test_a_program_that_runs_to_its_end_passes() -> None:
    source = "import math, typing, collections, dataclasses, re, heapq\nassert math.sqrt(4) == 2"
    execution = run(source)
    assert execution.passed, execution.detail
    assert execution.detail == ""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import numpy", "ModuleNotFoundError"),
        ("import sys; sys.exit(0)", ""),
        ("import os; os._exit(0)", ""),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_a_program_that_does_not_reach_its_end_fails(source: str, said: str) -> None:
    execution = run(source)
    assert execution.outcome == "failed"
    assert said in execution.detail


@pytest.mark.parametrize("source", ["while True: pass", "import time; time.sleep(60)"])
def test_a_program_that_does_not_end_is_killed(source: str) -> None:
    assert run(source, SandboxLimits(seconds=1)).outcome == "timeout"


def test_a_program_cannot_take_more_memory_than_it_may() -> None:
    execution = run("held = bytearray(1 << 30)")
    assert (execution.outcome, "MemoryError" in execution.detail) == ("failed", True)
    growing = run("held = []\nwhile True: held.append(bytearray(1 << 22))")
    assert growing.outcome == "failed"


def test_a_program_cannot_write_large_files_or_floods_of_errors() -> None:
    execution = run("open('large', 'wb').write(bytes(1 << 20))")
    assert execution.outcome == "failed"
    assert "File too large" in execution.detail
    flood = run("import sys\nwhile True: sys.stderr.write('x' * 10_000)")
    assert flood.outcome == "failed"
    assert len(flood.detail) <= 2000


@pytest.mark.parametrize(
    "source",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.fork()",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.remove('/etc/hostname')",
        "import ctypes; ctypes.CDLL(None)",
        "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    ],
)
def test_the_network_and_other_processes_are_out_of_reach(source: str) -> None:
    execution = run(source)
    assert execution.outcome == "failed"
    assert "the sandbox forbids" in execution.detail


def test_files_are_written_in_the_working_directory_only(tmp_path: Path) -> None:
    inside = "open('a', 'w').write('x')\nassert open('a').read() == 'x'"
    assert run(inside).passed
    outside = tmp_path / "outside"
    for mode in ("w", "a", "r+", "x"):
        execution = run(f"open({str(outside)!r}, {mode!r})")
        assert "forbids writing" in execution.detail
    assert not outside.exists()


def test_files_of_any_name_are_the_programs_own() -> None:
    assert run("open('report', 'w').write('x')").passed
    failed = run("open('report', 'wb').write(bytes(range(128, 256)))\nraise SystemExit")
    assert failed.outcome == "failed"
    assert run(
        "import os\nfor k in range(3, 32):\n try: os.write(k, b'x' * 9)\n except OSError: ..."
    )


def test_the_environment_is_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    # Python itself may set the locale.
    execution = run("import os\nassert set(os.environ) <= {'LC_CTYPE'}, dict(os.environ)")
    assert execution.passed, execution.detail


# --- the tasks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "passed"),
    [
        ("    return x / 2\n", True),
        ("    return x / 2\n\nThis halves it.", True),
        ("```python\ndef halve(x):\n    return math.fsum([x]) / 2\n```\nDone.", True),
        ("    return x // 2\n", False),
        ("I cannot.", False),
        ("", False),
    ],
)
def test_humaneval_takes_a_body_or_a_whole_function(generation: str, passed: bool) -> None:
    assert score_humaneval(HALVE, generation, allow_execution=True).passed is passed


@pytest.mark.parametrize(
    ("generation", "passed"),
    [
        ("def add(a, b):\n    return a + b<|eot_id|>rest", True),
        ("```\ndef add(a, b):\n    return a + b\n```", True),
        ("def add(a, b):\n    return a - b", False),
        ("", False),
    ],
)
def test_mbpp_runs_the_asserts_behind_the_code(generation: str, passed: bool) -> None:
    assert score_mbpp(ADD, generation, allow_execution=True).passed is passed


def test_pc_sampler_wants_the_function_defined_and_nothing_on_standard_error() -> None:
    whole = "def halve(x):\n    return x / 2\n"
    assert pc_humaneval(HALVE, whole, allow_execution=True).passed
    assert not pc_humaneval(HALVE, "    return x / 2\n", allow_execution=True).passed
    noisy = whole + "import sys\nsys.stderr.write('warning')\n"
    assert pc_humaneval(HALVE, noisy, allow_execution=True).outcome == "failed"
    assert score_humaneval(HALVE, noisy, allow_execution=True).passed


def test_code_is_the_first_block_that_parses_else_the_longest_beginning() -> None:
    assert extract_code("```\nnot python !\n```\n```py\na = 1\n```").strip() == "a = 1"
    assert extract_code("a = 1\nb = 2\nand so on it goes") == "a = 1\nb = 2"
    assert extract_code("?") == ""
