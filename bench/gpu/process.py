"""The process of a GPU run: interpreter or device, signals, and going on in another."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import Any

from bench.gpu.options import Options
from boe_kernels._triton import interpreting


def choose_interpreter(toy: bool) -> None:
    """Triton reads it when it is first imported, which happens when a kernel is first needed."""
    if toy:
        os.environ["TRITON_INTERPRET"] = "1"
    elif interpreting():
        raise SystemExit("TRITON_INTERPRET=1 is set: kernels would run on the CPU; unset it")


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, where signals can be caught."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        # Not the main thread.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def watched(seconds: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Call ``give_up`` in another thread if the block has not ended after so many seconds.

    A kernel that hangs keeps the main thread waiting, where no signal reaches Python.
    """
    timer = Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def go_on_in_new_process(argv: Sequence[str], options: Options) -> None:
    """Replace this process by one that does the rest, in the time that is left."""
    sys.stdout.flush()
    kept = [argument for argument in argv if argument != "--again"]
    going_on = ["--output", os.fspath(options.output), "--deadline", str(options.deadline)]
    since = ["--since", options.since] if options.since else []
    os.execv(sys.executable, [sys.executable, "-m", "bench", "gpu", *kept, *going_on, *since])
