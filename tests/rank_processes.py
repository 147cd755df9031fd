"""A script run by processes that talk through gloo, as torchrun would start them.

``python rank_processes.py COUNT SCRIPT ARGUMENTS…`` starts the ranks: forks of one process that
has imported what they all need, which takes as long as what they then do.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

TESTS = Path(__file__).parent
_LONGEST = 480
"""Seconds."""
_LATE_IMPORTS = (
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
)
"""What most of the scripts' models need besides what the scripts import."""


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
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent))),
    }
    process = subprocess.Popen(
        [sys.executable, __file__, str(count), script, *map(str, arguments)],
        env={**os.environ, **common},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # The ranks are ended with it.
        start_new_session=True,
    )
    try:
        yield
        output = process.communicate(timeout=_LONGEST)[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output


def _run_as(rank: int, script: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    runpy.run_path(script, run_name="__main__")


def _start(count: int, script: str, arguments: list[str]) -> int:
    """How many of the ranks failed."""
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    # Its imports alone.
    runpy.run_path(script)
    for name in _LATE_IMPORTS:
        importlib.import_module(name)
    fork = get_context("fork")
    ranks = [fork.Process(target=_run_as, args=(rank, script)) for rank in range(count)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return sum(rank.exitcode != 0 for rank in ranks)


if __name__ == "__main__":
    sys.exit(_start(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
