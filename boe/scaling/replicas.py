"""The replicas of this host: one process per GPU, each with shards of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
CANNOT_WRITE = 74
"""The status of a replica that found the disk full: its log, on the same disk, may not say so."""


@dataclass(frozen=True)
class Ended:
    """How a replica ended.

    Attributes:
        log: what it printed.
    """

    number: int
    status: int
    log: Path

    def __str__(self) -> str:
        if self.status < 0:
            how = f"was ended by {signal.Signals(-self.status).name}"
        elif self.status == CANNOT_WRITE:
            how = "could not write: the disk is full, or a limit on files is reached"
        else:
            how = f"ended with status {self.status}"
        return f"replica {self.number} {how} ({self.log})"

    @property
    def reason(self) -> str:
        """The same, and the last line of its log; on a full disk that could be any line."""
        return str(self) if self.status == CANNOT_WRITE else f"{self}: {last_line(self.log)}"


def end_with_parent() -> None:
    """Have this process ended when the command that started it is, even by SIGKILL (on Linux).

    It would hold its GPU, and the locks on its shards, while the command is run again.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def replica_count(device: str, wanted: int | None) -> int:
    """How many replicas this host is to have.

    Raises:
        ValueError: more than GPUs, where each needs one.
    """
    if not device.startswith("cuda"):
        return wanted or 1
    found = len(visible_gpus())
    if wanted is not None and wanted > found:
        raise ValueError(f"workers must be at most the number of GPUs here, {found}, got {wanted}")
    return wanted or found


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part.strip() for part in named.split(",") if part.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def run_replicas(
    kind: str,
    folder: Path,
    logs: Path,
    shards: Sequence[int],
    count: int,
    device: str,
    threads: int | None,
    on_poll: Callable[[], None] = lambda: None,
) -> list[Ended]:
    """Start replicas and wait for all of them; one that dies leaves the others at work.

    Ctrl-C and SIGTERM end them all.

    Args:
        kind: which work (:data:`boe.scaling.worker.KINDS`).
        shards: what is to be done, dealt to the replicas in turn.
        count: replicas; no more are started than there are shards.
        device: with "cuda" each replica sees one GPU.
        threads: CPU threads of each; by default its share of the cores, also where fewer
            replicas are started because little is left to do.
        on_poll: called several times a second.

    Returns:
        Those that did not end well.
    """
    threads = threads or max(1, (os.cpu_count() or 1) // count)
    count = min(count, len(shards))
    gpus = visible_gpus() if device.startswith("cuda") else []
    running: dict[int, subprocess.Popen[bytes]] = {}
    ended: list[Ended] = []
    paths = [logs / f"{number:03d}.log" for number in range(count)]
    try:
        with _ended_by_sigterm():
            for number in range(count):
                environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
                if gpus:
                    environment["CUDA_VISIBLE_DEVICES"] = gpus[number]
                mine = ",".join(map(str, shards[number::count]))
                with paths[number].open("wb") as log:
                    running[number] = subprocess.Popen(
                        [sys.executable, "-m", "boe.scaling.worker", kind, str(folder), mine],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment,
                    )
            while running:
                time.sleep(_POLL_SECONDS)
                on_poll()
                for number, process in list(running.items()):
                    status = process.poll()
                    if status is not None:
                        del running[number]
                        if status:
                            ended.append(Ended(number, status, paths[number]))
    finally:
        _stop(list(running.values()))
    return ended


def last_line(log: Path) -> str:
    """The last line that a replica printed: what ended it, if it is an exception."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM leaves the block by SystemExit, as Ctrl-C does by KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    until = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
