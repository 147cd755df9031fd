"""The GPU run: what is done in which order, when it ends, and what is kept of it."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from shutil import copyfile

import torch

from bench.gpu import aims, attention, correctness, llm, replay, steering, vocabulary
from bench.gpu.benchmark import FLOOR, Benchmark, Case, Machine
from bench.gpu.correctness import OUT_OF_TIME
from bench.gpu.launches import FatalDeviceError, reason
from bench.gpu.options import Options, parse
from bench.gpu.process import choose_interpreter, go_on_in_new_process, terminable, watched
from bench.gpu.roofline import NAME as ROOFLINE
from bench.gpu.roofline import measure_ceilings
from bench.gpu.store import HARNESS, Key, Store, file_stem
from bench.gpu.summary import MACHINE, write_summary
from bench.graphics import gpu_facts
from bench.kernels_doc import DOCS, put_section
from bench.report import console
from bench.results import RESULTS, Environment, Measurement

BENCHMARKS: tuple[Benchmark, ...] = (
    attention.BENCHMARK,
    *vocabulary.BENCHMARKS,
    *replay.BENCHMARKS,
    *steering.BENCHMARKS,
    llm.BENCHMARK,
)

_TEST_SECONDS = 420.0
_SANITIZER_SECONDS = 150.0
_LEAST_SANITIZER_SECONDS = 100.0
_TESTS_AT_ONCE = 8
_OVERTIME = 30.0
"""Seconds that a case begun in time may take beyond the end of the run."""


class Run:
    """One run on one device.

    Args:
        restart: goes on in a new process; does not return.
    """

    def __init__(self, options: Options, device: torch.device, restart: Callable[[], None]) -> None:
        self.options = options
        self._restart = restart
        self.device = device
        self.toy = device.type != "cuda"
        environment = Environment.of(device)
        if options.commit:
            environment = replace(environment, commit=options.commit)
        stem = file_stem(environment.hardware) + ("-unverified" if options.unverified else "")
        self.store = Store(_seeded(options.output, stem), stem, environment, options.since)
        self.terminal = console()
        self.began = time.monotonic()
        self.late = False

    def everything(self) -> None:
        """All parts that were asked for, the most important first."""
        jobs = self._jobs()
        if self.options.listing:
            self._list(jobs)
            return
        self._say(
            f"{self.store.environment.hardware}, torch {self.store.environment.torch_version}, "
            f"Triton {self.store.environment.triton_version}: results in {self.store.csv}"
        )
        files = correctness.test_files()
        if "tests" not in self.options.parts:
            needed = {file for _, benchmark, _ in jobs for file in benchmark.tests}
            files = [file for file in files if file in needed]
        self._test(files)
        first = [job for job in jobs if job[0] == "aims"]
        if first:
            self._measure(first)
        if "sanitizer" in self.options.parts:
            self._sanitize()
        rest = [job for job in jobs if job[0] != "aims"]
        if rest:
            self._measure(rest)

    # --- correctness ----------------------------------------------------------------

    def _test(self, files: Sequence[str]) -> None:
        keys = {file: correctness.key_of(file) for file in files}
        missing = {
            file: correctness.passed_before(self.store.of(key))
            for file, key in keys.items()
            if self.store.seconds(key) is None
        }
        if len(missing) < len(files):
            self._say(f"tests: {len(files) - len(missing)} files are stored already")
        if not missing or self._is_late():
            return
        self._say(f"tests: {len(missing)} files")
        began = time.monotonic()
        for outcome in correctness.run_tests(
            missing,
            on_gpu=not self.toy,
            seconds=min(_TEST_SECONDS, self._left()),
            at_once=min(_TESTS_AT_ONCE, max(1, (os.cpu_count() or 1) // 2)),
            log=self.store.log,
        ):
            taken = time.monotonic() - began if outcome.is_complete else None
            self.store.keep(keys[outcome.file], outcome.measurements(), taken)
            counts = (f"{outcome.count(what)} {what}" for what in ("passed", "failed", "skipped"))
            self._say(f"  {outcome.file}: {', '.join(counts)}")
            for test, why in outcome.failures:
                self._say(f"    FAILED {test}: {why}")
        write_summary(self.store, self.options.unverified)

    def _sanitize(self) -> None:
        key = correctness.SANITIZER_KEY
        if self.store.seconds(key) is not None or self._is_late():
            return
        if not self.toy and self._left() < _LEAST_SANITIZER_SECONDS:
            self._say("sanitizer: left for another run, there is too little time for it")
            return
        began = time.monotonic()
        if self.toy:
            # A stand-in, so that the row exists in every run.
            found = correctness.unavailable("the sanitizer needs a GPU")
        else:
            found = correctness.sanitize(min(_SANITIZER_SECONDS, self._left()), self.store.log)
        cut_off = OUT_OF_TIME in found.note
        self.store.keep(key, [found], None if cut_off else time.monotonic() - began)
        errors = "not run" if found.value is None else f"{found.value.p50:.0f} errors"
        self._say(f"sanitizer: {errors}. {found.note}")

    # --- speed ----------------------------------------------------------------------

    def _jobs(self) -> list[tuple[str, Benchmark, Case]]:
        """Part, benchmark and case of everything that is to be timed, in order."""
        first = [("aims", b, case) for b in BENCHMARKS for case in b.aims(self.toy)]
        # In turn, so that a run that ends early has something of every op.
        sweeps = [[("sweep", b, case) for case in b.sweep(self.toy)] for b in BENCHMARKS]
        # Those that need much time for one case come after all that do not.
        small = sorted(sweeps, key=lambda jobs: (jobs[0][1].needs if jobs else 0.0, len(jobs)))
        return [
            job
            for job in (*first, *chain.from_iterable(small))
            if job[0] in self.options.parts and self.options.cases in f"{job[1].name} {job[2]}"
        ]

    def _measure(self, jobs: Sequence[tuple[str, Benchmark, Case]]) -> None:
        todo = []
        for part, benchmark, case in jobs:
            if self.store.seconds(_key(benchmark, case)) is None:
                todo.append((part, benchmark, case))
        if len(todo) < len(jobs):
            self._say(f"{jobs[0][0]}: {len(jobs) - len(todo)} cases are stored already")
        refused = {b.name: red for _, b, _ in todo if (red := self._red_tests(b))}
        for name, red in refused.items():
            self._say(f"{name}: not timed, because {red} did not pass")
        todo = [job for job in todo if job[1].name not in refused]
        if not todo or self._is_late():
            return
        machine = self._machine()
        for number, (part, benchmark, case) in enumerate(todo, 1):
            if self._is_late():
                self._say(f"{part}: out of time, {len(todo) - number + 1} cases are left")
                break
            label = f"[{number}/{len(todo)}] {benchmark.name} {case}"
            if not self.toy and self._left() < benchmark.needs:
                self._say(f"{label}: left for another run, there is too little time for it")
                continue
            self._case(label, benchmark, case, machine)
            following = todo[number][1] if number < len(todo) else None
            if benchmark.release is not None and following is not benchmark:
                benchmark.release()

    def _case(self, label: str, benchmark: Benchmark, case: Case, machine: Machine) -> None:
        key = _key(benchmark, case)
        began = time.monotonic()
        measured: list[Measurement] = []
        try:
            # A run that is killed from outside would keep nothing, not even its summary.
            room = max(0.0, self._left()) + _OVERTIME
            if room < benchmark.limit:
                limit, give_up = room, partial(self._leave, label, key, measured)
            else:
                limit = benchmark.limit
                give_up = partial(self._give_up, label, key, measured, limit)
            with watched(limit, give_up):
                for measurement in benchmark.measure(case, machine):
                    measured.append(measurement)
        except FatalDeviceError as lost:
            self._lose(label, key, measured, began, lost)
            raise
        except Exception as error:
            # A case of its own must not cost the cases after it: they would all fail, and
            # count as done, if the error had taken the device away.
            try:
                why = reason(error, self.device)
            except FatalDeviceError as lost:
                self._lose(label, key, measured, began, lost)
                raise
            measured.append(_not_measured(key, why))
            self._say(f"{label}: {why}")
        self._store_case(key, measured, began)
        self._say(f"{label}: {_headline(measured)}")

    def _lose(
        self,
        label: str,
        key: Key,
        measured: list[Measurement],
        began: float,
        lost: FatalDeviceError,
    ) -> None:
        why = f"the device was lost: {lost}"
        self._store_case(key, [*measured, _not_measured(key, why)], began)
        self._say(f"{label}: {why}")

    def _give_up(self, label: str, key: Key, measured: list[Measurement], limit: float) -> None:
        """A case that takes too long is over, and with it this process, which may hang."""
        why = f"given up after {limit:.0f} s"
        self._say(f"{label}: {why}")
        self._store_case(key, [*measured, _not_measured(key, why)], time.monotonic() - limit)
        self._restart()

    def _leave(self, label: str, key: Key, measured: list[Measurement]) -> None:
        """A case that the run's own time is too short for, which only showed on the way.

        What it has measured is kept; another run begins it anew.
        """
        self.store.keep(key, measured, seconds=None)
        self._say(f"{label}: out of time, left for another run")
        self._restart()

    def _store_case(self, key: Key, measured: list[Measurement], began: float) -> None:
        self.store.keep(key, measured, time.monotonic() - began)
        write_summary(self.store, self.options.unverified)

    def _machine(self) -> Machine:
        ceilings, measured = measure_ceilings(self.device, self.toy)
        keys = {(m.dtype, str(m.config)): m for m in measured}
        for m in keys.values():
            self.store.keep(Key(ROOFLINE, m.dtype, m.config, ()), [m], seconds=None)
        rates = (f"{dtype} {rate / 1e12:.0f}" for dtype, rate in ceilings.arithmetic.items())
        self._say(
            f"ceilings: {ceilings.bandwidth / 1e9:,.0f} GB/s copied; "
            f"TFLOP/s of products: {', '.join(rates).replace('torch.', '')}"
        )
        if not self.toy:
            # Now, while it is warm from the products.
            facts = [
                Measurement(MACHINE, name, "", "", {}, "fact", None, value)
                for name, value in gpu_facts(self.device).items()
            ]
            self.store.keep(Key(MACHINE, "", {}, ()), facts, seconds=None)
        return Machine(self.device, ceilings, self.toy)

    def _red_tests(self, benchmark: Benchmark) -> str:
        """The first file of tests that the benchmark needs and that is not green."""
        if self.options.unverified:
            return ""
        for file in benchmark.tests:
            stored = self.store.of(correctness.key_of(file))
            if not correctness.is_green(stored, on_gpu=not self.toy):
                return file
        return ""

    # --- around ---------------------------------------------------------------------

    def _list(self, jobs: Sequence[tuple[str, Benchmark, Case]]) -> None:
        for file in correctness.test_files():
            self._say(f"tests {file}: {self._state(correctness.key_of(file))}")
        for part, benchmark, case in jobs:
            self._say(f"{part} {benchmark.name} {case}: {self._state(_key(benchmark, case))}")

    def _state(self, key: Key) -> str:
        seconds = self.store.seconds(key)
        return "to be run" if seconds is None else f"stored, took {seconds:.1f} s"

    def _left(self) -> float:
        return self.options.deadline - time.time()

    def _is_late(self) -> bool:
        self.late = self.late or self._left() <= 0
        return self.late

    def _say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        self.terminal.print(f"{minutes:2}:{seconds:02} {text}", markup=False, highlight=False)
        sys.stdout.flush()


def main(argv: Sequence[str]) -> None:
    """Run everything that the command line asks for and that is not stored yet."""
    toy = not torch.cuda.is_available()
    options = parse(argv, toy=toy)
    if options.docs:
        put_section(DOCS, aims.docs_section(RESULTS))
        return
    choose_interpreter(toy)
    # What is loaded by now stays: collecting garbage between timings need not look at it.
    gc.collect()
    gc.freeze()
    restart = partial(go_on_in_new_process, argv, options)
    run = Run(options, torch.device("cpu" if toy else "cuda"), restart)
    interrupted = False
    try:
        with terminable():
            run.everything()
    except KeyboardInterrupt:
        interrupted = True
        run.terminal.print("interrupted: what had been measured is kept")
    except FatalDeviceError:
        write_summary(run.store, options.unverified)
        # Nothing works any more in this process; the case is stored, so that it is over.
        restart()
    finally:
        gc.unfreeze()
    if options.listing:
        return
    write_summary(run.store, options.unverified)
    for aim in aims.AIMS:
        verdict = aims.verdict(aim, run.store.measurements)
        run.terminal.print(f"{verdict} (to reach: {aim.bar}): {aim.claim}", highlight=False)
    run.terminal.print(f"summary: {run.store.summary}", highlight=False)
    failed = any(m.metric == "failure" for m in run.store.measurements)
    if interrupted or failed:
        raise SystemExit(130 if interrupted else 1)


def _seeded(folder: Path, stem: str) -> Path:
    """The folder, with what is committed for the device, so that the run can go on from it."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{stem}.csv"
    if (RESULTS / name).exists() and not (folder / name).exists():
        copyfile(RESULTS / name, folder / name)
    return folder


def _key(benchmark: Benchmark, case: Case) -> Key:
    return Key(benchmark.name, case.dtype_name, case.config, benchmark.sources)


def _not_measured(key: Key, why: str) -> Measurement:
    return Measurement(key.benchmark, HARNESS, "", key.dtype, key.config, "failure", None, why)


def _headline(measured: Sequence[Measurement]) -> str:
    """The times of the mode that matters most, the first of the graphed ones if there are."""
    timed = [m for m in measured if m.metric == "time_ms" and m.value is not None]
    modes = list(dict.fromkeys(m.mode for m in timed if m.provider != FLOOR))
    if not modes:
        return "nothing could be timed"
    mode = next((mode for mode in modes if mode.endswith("graphed")), modes[0])
    times = (f"{m.provider} {1e3 * m.value.p50:.1f}" for m in timed if m.mode == mode and m.value)
    return f"{mode}, µs: {', '.join(times)}"
