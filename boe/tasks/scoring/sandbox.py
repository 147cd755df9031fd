"""Running programs that a model wrote, in a confined process.

The program gets a process of its own with a fresh working directory, an empty environment
and the standard library only. The operating system limits its time, memory, file sizes
and open files; a user namespace without network is used where unprivileged processes may
have one. An audit hook in the interpreter further refuses sockets, other processes and
writing elsewhere. This holds back programs that are wrong, not ones made to break out: for
those, run the whole evaluation in a container or virtual machine.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_CONFINEMENT = Path(__file__).with_name("confinement.py")
_DETAIL_CHARACTERS = 2000
_REPORT_BYTES = 4096

Outcome = Literal["passed", "failed", "timeout"]


@dataclass(frozen=True)
class SandboxLimits:
    """What a program may use: ``seconds`` of wall and of CPU time, bytes of address space,
    and bytes per file written."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds must be positive, got {self.seconds}")
        if self.memory_bytes < 1 << 26:
            raise ValueError(f"memory_bytes must be at least 64 MiB, got {self.memory_bytes}")
        if self.file_bytes < 1 << 12:
            raise ValueError(f"file_bytes must be at least 4 KiB, got {self.file_bytes}")


@dataclass(frozen=True)
class Execution:
    """What became of a program.

    Attributes:
        outcome: "passed" if it ran to its end without an exception, "timeout" if it was
            killed for its time, else "failed".
        detail: the end of what it wrote to standard error.
        network: "namespace" if the operating system kept it off the network, "hook" if
            only the interpreter did.
    """

    outcome: Outcome
    detail: str
    network: Literal["namespace", "hook"]

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def run_program(
    source: str, *, allow_execution: bool = False, limits: SandboxLimits | None = None
) -> Execution:
    """Run a Python program to its end, confined.

    A program that ends early, by ``sys.exit(0)`` or ``os._exit(0)``, has failed.

    Args:
        source: the program.
        allow_execution: must be True. Code that a model wrote is run only when asked for.
        limits: :class:`SandboxLimits` by default.

    Raises:
        PermissionError: ``allow_execution`` is not True.
        NotImplementedError: the system has no POSIX resource limits.
        RuntimeError: the process could not be confined, so nothing was run.
    """
    if allow_execution is not True:
        raise PermissionError(
            "scoring this task runs code written by a model; pass allow_execution=True to allow it"
        )
    if os.name != "posix":
        raise NotImplementedError(f"the sandbox needs a POSIX system, got {os.name}")
    limits = limits or SandboxLimits()
    token = secrets.token_hex(16)
    told, report = os.pipe()
    order = {
        "source": source,
        "token": token,
        "report": report,
        "seconds": limits.seconds,
        "memory": limits.memory_bytes,
        "file_size": limits.file_bytes,
    }
    with (
        open(told, "rb", buffering=0) as reports,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        errors = Path(folder, "stderr")
        with open(report, "wb"), errors.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(_CONFINEMENT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=sink,
                cwd=folder,
                env={},
                pass_fds=(report,),
                start_new_session=True,
            )
        timed_out = _finish(process, json.dumps(order).encode(), limits.seconds)
        # Whoever else may still hold the other end is not waited for.
        os.set_blocking(told, False)
        lines = (reports.read(_REPORT_BYTES) or b"").decode(errors="replace").splitlines()
        with errors.open("rb") as written:
            written.seek(max(0, errors.stat().st_size - _DETAIL_CHARACTERS))
            detail = written.read().decode(errors="replace")
    if not lines and not timed_out:
        raise RuntimeError(f"the sandbox could not be set up: {detail.strip() or 'no report'}")
    outcome: Outcome = "failed"
    if timed_out or process.returncode == -signal.SIGXCPU:
        outcome = "timeout"
    elif process.returncode == 0 and lines[1:] == [token]:
        outcome = "passed"
    return Execution(outcome, detail, "namespace" if lines[:1] == ["namespace"] else "hook")


def _finish(process: subprocess.Popen, order: bytes, seconds: float) -> bool:
    """Wait for the process, kill what is left of its session; True if its time ran out."""
    try:
        process.communicate(order, timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        return True
    finally:
        # The session outlives its leader if that left a process behind.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
