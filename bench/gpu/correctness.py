"""The tests of ``tests/gpu`` as part of the run: in parallel, file by file, with outcomes.

Every file runs in a process of its own: a kernel that writes where it must not takes its
process's device context with it and nothing else. Most of the time is compilation, which is
why several run at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from threading import Lock

from bench.gpu.outcomes import Outcome, append_outcomes, read_outcomes
from bench.gpu.store import Key
from bench.results import Measurement, Quantiles

NAME = "tests"
SANITIZER = "sanitizer"
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "gpu"
OUT_OF_TIME = "stopped for want of time"
_PASSED = "passed_before_cut"
"""Metric of a test that passed in a file that was cut off."""
FOUND_ERRORS = 86
"""The sanitizer's exit status when the device did something wrong."""


# What a file of tests can only depend on; the others depend on all of boe_kernels.
_PACKAGES = {
    "test_gpu_query_attention": ("query_attention",),
    "test_gpu_row_attention": ("row_attention", "query_attention"),
    "test_gpu_attention_mass": ("attention_mass",),
    "test_gpu_tiles": ("query_attention", "row_attention", "attention_mass"),
    "test_gpu_vocabulary": ("entropy", "head_entropy", "token_sampling"),
    "test_gpu_steering": ("soft_embedding", "tis_scores", "entropy"),
}
_HELPERS = (
    "tests/conftest.py",
    "tests/gpu/conftest.py",
    "tests/gpu/op_calls.py",
    "tests/gpu/captured_after_warmup.py",
    "tests/kernels",
)
# What a file of tests takes from elsewhere besides.
_BORROWED = {
    "test_gpu_tiles": (
        "bench/tiles.py",
        "tests/gpu/test_gpu_query_attention.py",
        "tests/gpu/test_gpu_row_attention.py",
    ),
    "test_gpu_compiled_step": ("boe", "bench/llm_step.py"),
}


def key_of(file: str) -> Key:
    """Under what the outcome of a file of tests is stored."""
    stem = Path(file).stem
    packages = _PACKAGES.get(stem)
    folders = ("boe_kernels",) if packages is None else (f"boe_kernels/{p}" for p in packages)
    sources = (file, *_BORROWED.get(stem, ()), *folders, *_HELPERS)
    return Key(NAME, "", {"file": file}, sources)


SANITIZER_KEY = Key(SANITIZER, "", {"tool": "memcheck"}, ("boe_kernels", "tests/gpu"))


def is_green(measurements: Sequence[Measurement], *, on_gpu: bool) -> bool:
    """Whether a file's stored outcome says that something ran and nothing failed.

    Off the GPU, where a selection runs, a file without any of it is as good.
    """
    passed = sum(m.value.p50 for m in measurements if m.metric == "passed" and m.value)
    ran = passed > 0 if on_gpu else len(measurements) > 0
    return ran and not any(m.metric == "failure" for m in measurements)


@dataclass(frozen=True)
class FileOutcome:
    """What came of one file of tests."""

    file: str
    outcomes: tuple[Outcome, ...]
    trouble: str
    """Why it did not get to its end; empty if it did."""

    def count(self, result: str) -> int:
        return sum(outcome.result == result for outcome in self.outcomes)

    @property
    def is_complete(self) -> bool:
        return not self.trouble.startswith(OUT_OF_TIME)

    @property
    def failures(self) -> list[tuple[str, str]]:
        """What failed, and why."""
        failed = [(o.test, o.reason) for o in self.outcomes if o.result == "failed"]
        return [*failed, (self.file, self.trouble)] if self.trouble else failed

    def measurements(self) -> list[Measurement]:
        """Counts by outcome, a line per failure, and what a run that goes on need not repeat."""
        config = {"file": self.file}

        def row(provider: str, metric: str, value: float | None, note: str = "") -> Measurement:
            quantiles = None if value is None else Quantiles.of([value])
            return Measurement(NAME, provider, "", "", config, metric, quantiles, note)

        counts = [
            row("pytest", result, self.count(result)) for result in ("passed", "failed", "skipped")
        ]
        counts += [row(test, "failure", None, why) for test, why in self.failures]
        if self.is_complete:
            return counts
        return counts + [row(o.test, _PASSED, 1.0) for o in self.outcomes if o.result == "passed"]


def passed_before(measurements: Sequence[Measurement]) -> list[Outcome]:
    """The tests of a file that had passed when it was cut off, from its stored outcome."""
    return [Outcome(m.provider, "passed", "") for m in measurements if m.metric == _PASSED]


def test_files() -> list[str]:
    """Below the repository, longest first as far as their size tells."""
    files = sorted(FOLDER.glob("test_*.py"), key=lambda path: -path.stat().st_size)
    return [path.relative_to(ROOT).as_posix() for path in files]


def run_tests(
    files: Mapping[str, Sequence[Outcome]],
    *,
    on_gpu: bool,
    seconds: float,
    at_once: int,
    log: Path,
) -> Iterator[FileOutcome]:
    """Run files of tests, in parallel on a GPU; yields each file's outcome when it is there.

    Off the GPU a selection runs in one process, under Triton's interpreter.

    Args:
        files: with what is known of their tests; those that passed are not run again.
        seconds: for all of them together.
        log: takes what pytest printed about files with failures.
    """
    began = time.monotonic()
    processes = _Processes(log)
    if not on_gpu:
        with tempfile.TemporaryDirectory(prefix="boe-gpu-tests-") as folder:
            yield from _run_together(processes, files, Path(folder) / "outcomes", seconds)
        return
    with (
        tempfile.TemporaryDirectory(prefix="boe-gpu-tests-") as folder,
        ThreadPoolExecutor(at_once) as pool,
    ):

        def run(file: str) -> FileOutcome:
            record = Path(folder) / Path(file).stem
            append_outcomes(record, files[file])
            left = seconds - (time.monotonic() - began)
            trouble = processes.run(_pytest([file], record), left)
            return FileOutcome(file, tuple(read_outcomes(record)), trouble)

        try:
            for done in as_completed([pool.submit(run, file) for file in files]):
                yield done.result()
        finally:
            processes.stop()
            pool.shutdown(cancel_futures=True)


def sanitize(seconds: float, log: Path) -> Measurement:
    """The sanitizer's memory check of a small selection of the tests."""
    tool = which("compute-sanitizer") or which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        return unavailable("compute-sanitizer is not installed")
    options = ("--tool", "memcheck", "--error-exitcode", str(FOUND_ERRORS))
    quiet = ("--report-api-errors", "no", "--target-processes", "application-only")
    with tempfile.TemporaryDirectory(prefix="boe-sanitizer-") as folder:
        record = Path(folder) / "outcomes"
        command = _pytest([FOLDER.relative_to(ROOT).as_posix()], record)
        printed: list[str] = []
        # Without PyTorch's cache every tensor is an allocation, whose ends can be watched.
        trouble = _Processes(log).run(
            # Large cases would take all of the time, and no other code.
            [tool, *options, *quiet, *command, "-m", "sanitized and not device_only"],
            seconds,
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            printed,
        )
        outcomes = read_outcomes(record)
    summary = next((line for line in reversed(printed) if "ERROR SUMMARY" in line), "")
    ran = sum(outcome.result == "passed" for outcome in outcomes)
    failed = [outcome.test for outcome in outcomes if outcome.result == "failed"]
    if summary and ran + len(failed):
        errors = int(next(word for word in summary.split() if word.isdigit()))
        note = f"{ran} tests passed under it, {len(failed)} failed {failed or ''}".strip()
        return _sanitized(errors, note)
    return unavailable(trouble or (printed[-1] if printed else "it said nothing"))


def unavailable(why: str) -> Measurement:
    """That the sanitizer gave no verdict."""
    return _sanitized(None, why)


def _sanitized(errors: int | None, note: str) -> Measurement:
    value = None if errors is None else Quantiles.of([errors])
    config = SANITIZER_KEY.config
    return Measurement(SANITIZER, "memcheck", "", "", config, "errors", value, note)


def _pytest(files: Sequence[str], record: Path) -> list[str]:
    plugins = ("-p", "bench.gpu.outcomes", "-p", "no:cacheprovider")
    return [
        sys.executable,
        "-m",
        "pytest",
        *files,
        *plugins,
        "--outcomes",
        os.fspath(record),
        "-q",
        "--no-header",
    ]


def _run_together(
    processes: _Processes, files: Mapping[str, Sequence[Outcome]], record: Path, seconds: float
) -> Iterator[FileOutcome]:
    for known in files.values():
        append_outcomes(record, known)
    # The selection for the sanitizer is small, and has something of every op.
    selection = ("--interpret", "-m", "sanitized", "-k", "float32")
    trouble = processes.run([*_pytest(list(files), record), *selection], seconds)
    outcomes = read_outcomes(record)
    for file in files:
        own = tuple(o for o in outcomes if o.test.split("::")[0] == file)
        yield FileOutcome(file, own, trouble)


class _Processes:
    """Processes that are stopped, with all that they started, when the run is."""

    def __init__(self, log: Path | None = None) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._log = log
        self._writing = Lock()

    def run(
        self,
        command: Sequence[str],
        seconds: float,
        environment: dict[str, str] | None = None,
        printed: list[str] | None = None,
    ) -> str:
        """Run a command to its end; returns what kept it from getting there.

        Args:
            printed: takes the lines that it printed.
        """
        if seconds <= 0 or self._stopped:
            return OUT_OF_TIME
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**_environment("--interpret" in command), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A group but no session of its own, so that it ends with whatever ends us.
            process_group=0,
        )
        self._running.add(process)
        trouble = ""
        try:
            text, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            text, _ = process.communicate()
            trouble = f"{OUT_OF_TIME} after {seconds:.0f} s"
        finally:
            _kill(process)
            self._running.discard(process)
        lines = text.splitlines()
        if printed is not None:
            printed += lines
        # 0: all passed; 1: some failed; 5: none were selected.
        if not trouble and process.returncode not in (0, 1, 5, FOUND_ERRORS):
            last = next((line for line in reversed(lines) if line.strip()), "")
            trouble = f"exit status {process.returncode}: {last}"[:400]
        if self._log is not None and (trouble or process.returncode):
            with self._writing, self._log.open("a", encoding="utf-8") as file:
                file.write(f"$ {' '.join(command)}\n{text}\n{trouble}\n")
        return trouble

    def stop(self) -> None:
        self._stopped = True
        for process in tuple(self._running):
            _kill(process)


def _environment(interpret: bool) -> dict[str, str]:
    paths = [os.fspath(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "TRITON_INTERPRET": "1" if interpret else "0",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
