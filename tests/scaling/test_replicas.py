"""The processes of this host, and what their end says."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from boe.scaling import replicas
from boe.scaling.replicas import Ended, last_line, replica_count, run_replicas, visible_gpus

PROGRAM = """
import os, sys
print(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["OMP_NUM_THREADS"], sys.argv[-1])
if sys.argv[-1] == "0,2":
    raise ValueError("no model")
if sys.argv[-1] == "4":
    os.kill(os.getpid(), 9)
"""


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
