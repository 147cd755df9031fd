"""Sharded generation by datatrove with processes that are really killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from prompt_files import answers_of, begin, write_prompts
from typer.testing import CliRunner

pytest.importorskip("datatrove", reason="pip install '.[scaling]'")

from boe.cli.app import app
from boe.denoisers.loading import LoadedModel
from boe.scaling import replicas
from boe.scaling.answering import Replica
from boe.scaling.job import JobFolder
from boe.scaling.merging import merge

PROMPTS = 48


def answers_in(folder: JobFolder, shard: int) -> int:
    path = folder.progress(shard)
    return path.read_text().count('"item"') if path.exists() else 0


class Killer(threading.Thread):
    """Kills the first replica as soon as its shard has some answers."""

    def __init__(self, folder: JobFolder, started: list[subprocess.Popen[bytes]]) -> None:
        super().__init__(daemon=True)
        self.folder, self.started = folder, started
        self.left_behind = -1

    def run(self) -> None:
        while answers_in(self.folder, 0) < 3:
            time.sleep(0.002)
        os.kill(self.started[0].pid, signal.SIGKILL)
        self.started[0].wait()
        self.left_behind = answers_in(self.folder, 0)


def test_a_killed_worker_and_a_rerun_give_the_answers_of_an_undisturbed_run(
    tmp_path: Path, tiny_bert: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", PROMPTS, length=10)
    undisturbed = begin(tmp_path / "whole", tiny_bert, prompts, batch_size=2, shards=3)
    for shard in range(3):
        Replica(undisturbed, loaded).run_shard(shard)
    merge(undisturbed)

    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(replicas.subprocess, "Popen", Noted)
    folder = JobFolder(tmp_path / "out")
    fixed = ["--sampler", "confidence", "--temperature", "1", "--batch", "2", "--threads", "1"]
    sharded = ["--shards", "2", "--workers", "2", "--input", prompts, "--output", folder.path]
    command = ["generate", "--model", tiny_bert, *fixed, *sharded]
    killer = Killer(folder, started)
    killer.start()
    result = CliRunner().invoke(app, [*map(str, command)])
    killer.join(timeout=60)

    # The other worker has finished its shard, and the error says what is left to do.
    assert isinstance(result.exception, RuntimeError)
    assert "replica 0 was ended by SIGKILL" in str(result.exception)
    assert "Shards 0 are unfinished" in str(result.exception)
    assert folder.marker(1).exists()
    assert not folder.answers.exists()
    assert 3 <= killer.left_behind < PROMPTS / 2

    again = CliRunner().invoke(app, [*map(str, command), "--json", str(tmp_path / "all.json")])
    assert again.exit_code == 0, again.output
    assert "1 of 2 shards were there already" in again.output
    assert len(started) == 3
    answers = answers_of(folder.answers)
    assert [answer["id"] for answer in answers] == [f"p{k}" for k in range(PROMPTS)]
    assert answers == answers_of(undisturbed.answers)
    assert json.loads((tmp_path / "all.json").read_text())["answered"] == PROMPTS
    # What the killed worker had stored was not decoded again.
    stored = [json.loads(text) for text in folder.progress(0).read_text().splitlines()]
    items = [line["item"] for line in stored if "item" in line]
    assert len(items) == len(set(items)) == PROMPTS / 2
