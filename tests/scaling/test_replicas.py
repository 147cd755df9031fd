"""The processes of this host, and what their end says."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from boe.scaling import replicas, worker
from boe.scaling.replicas import Ended, last_line, replica_count, run_replicas, visible_gpus

PROGRAM = """
import os, sys
print(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["OMP_NUM_THREADS"], sys.argv[-1])
if sys.argv[-1] == "0,2":
    raise ValueError("no model")
if sys.argv[-1] == "4":
    os.kill(os.getpid(), 9)
"""


SLEEPING = """
import os, sys, time
from pathlib import Path
from boe.scaling import replicas
start = replicas.subprocess.Popen
asleep = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
if sys.argv[2] == "with parent":
    asleep = "from boe.scaling.replicas import end_with_parent; end_with_parent(); " + asleep
replicas.subprocess.Popen = lambda command, **options: start(
    [sys.executable, "-c", asleep], **options
)
folder = Path(sys.argv[1])
replicas.run_replicas("generation", folder, folder, [0, 1], 2, "cpu", 1)
"""


def sleeping_replicas(folder: Path, kind: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A process with two replicas that sleep, and these."""
    parent = subprocess.Popen([sys.executable, "-c", SLEEPING, str(folder), kind])
    logs = [folder / "000.log", folder / "001.log"]
    until = time.monotonic() + 60
    while not all(log.exists() and log.read_text().endswith("\n") for log in logs):
        assert time.monotonic() < until
        time.sleep(0.05)
    return parent, [int(log.read_text()) for log in logs]


def is_gone(pid: int) -> bool:
    """Whether a process has ended within a while; nobody need have asked how."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short program in the place of a replica."""
    start = replicas.subprocess.Popen

    def replaced(command: list[str], **options: Any) -> Any:
        return start([sys.executable, "-c", PROGRAM, *command[3:]], **options)

    monkeypatch.setattr(replicas.subprocess, "Popen", replaced)


def test_each_replica_gets_a_gpu_and_its_share_of_shards(
    tmp_path: Path, program: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,GPU-a1")
    polls: list[int] = []
    ended = run_replicas(
        "generation", tmp_path, tmp_path, [1, 3, 5], 2, "cuda", 3, lambda: polls.append(1)
    )
    assert ended == []
    assert polls
    assert (tmp_path / "000.log").read_text() == "5 3 1,5\n"
    assert (tmp_path / "001.log").read_text() == "7 3 3\n"


def test_shards_are_dealt_in_turn_to_more_replicas_than_divide_them(
    tmp_path: Path, program: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert run_replicas("generation", tmp_path, tmp_path, range(6), 4, "cpu", 1) == []
    dealt = [(tmp_path / f"{n:03d}.log").read_text().split()[-1] for n in range(4)]
    assert dealt == ["0,4", "1,5", "2", "3"]


def test_a_replica_that_dies_leaves_the_others_at_work_and_is_named(
    tmp_path: Path, program: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    ended = run_replicas("generation", tmp_path, tmp_path, [0, 4, 2], 2, "cpu", 1)
    by_number = {one.number: one for one in ended}
    assert "replica 0 ended with status 1" in str(by_number[0])
    assert last_line(by_number[0].log) == "ValueError: no model"
    assert by_number[1].status == -signal.SIGKILL
    assert "replica 1 was ended by SIGKILL" in str(by_number[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "kind", "status"),
    [(signal.SIGTERM, "alone", 128 + signal.SIGTERM), (signal.SIGKILL, "with parent", -9)],
)
def test_replicas_end_with_the_command_that_started_them(
    tmp_path: Path, number: signal.Signals, kind: str, status: int
) -> None:
    parent, replicas_of_it = sleeping_replicas(tmp_path, kind)
    parent.send_signal(number)
    assert parent.wait(timeout=30) == status
    assert all(is_gone(pid) for pid in replicas_of_it)


def test_a_replica_that_finds_the_disk_full_says_so_by_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(code: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(worker.JobFolder, "content", lambda self: {"shards": 1})
    monkeypatch.setattr(worker.os, "_exit", sys.exit)
    for code, raised in ((errno.ENOSPC, SystemExit), (errno.EACCES, PermissionError)):
        monkeypatch.setattr(worker.ReplicaExecutor, "run", lambda self, code=code: failing(code))
        with pytest.raises(raised) as caught:
            worker.main(["generation", str(tmp_path), "0"])
        if raised is SystemExit:
            assert caught.value.code == replicas.CANNOT_WRITE
    log = tmp_path / "x.log"
    log.write_text("a line that was cut")
    assert "could not write: the disk is full" in Ended(0, replicas.CANNOT_WRITE, log).reason
    assert "a line that was cut" not in Ended(0, replicas.CANNOT_WRITE, log).reason
    assert Ended(0, 1, log).reason.endswith("x.log): a line that was cut")


def test_nothing_printed_is_said_to_be_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text("")
    assert last_line(tmp_path / "x.log") == "it printed nothing"
    assert str(Ended(3, 7, tmp_path / "x.log")).startswith("replica 3 ended with status 7 (")


def test_there_are_as_many_replicas_as_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible_gpus() == ["2", "3"]
    assert replica_count("cuda", None) == 2
    assert replica_count("cuda", 1) == 1
    assert replica_count("cpu", None) == 1
    assert replica_count("cpu", 5) == 5
    with pytest.raises(ValueError, match="workers must be at most the number of GPUs here, 2"):
        replica_count("cuda", 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
