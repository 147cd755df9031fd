"""A script run by processes that talk through gloo, as torchrun would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parent
_LONGEST = 480
"""Seconds."""


@contextmanager
def ranks_running(count: int, script: Path, *arguments: object) -> Iterator[None]:
    """``count`` ranks run ``script`` while the block runs; its end waits for them to succeed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent))),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, script, *map(str, arguments)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        yield
        outputs = [process.communicate(timeout=_LONGEST)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(outputs)
