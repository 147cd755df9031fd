"""``boe generate --tensor-parallel``: two processes write what one does, and once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from prompt_files import answers_of, write_lines
from published_checkpoints import LLADA, random_state, save_words, write_checkpoint
from rank_processes import ranks_running
from typer.testing import CliRunner

pytest.importorskip("datatrove", reason="pip install '.[scaling]'")

from boe.cli.app import app
from boe.cli.sharding import Sharding, run_sharded_generation
from boe.denoisers.tensor_parallel import RankOutOfMemory, act_together
from boe.scaling.job import GenerationJob, ModelSource
from boe.scaling.rank_group import RankGroup
from boe.text import TextOptions

SAMPLED = ["--temperature", "1", "--seed", "3", "--dtype", "float64"]


def save_llada(folder: Path) -> Path:
    write_checkpoint(folder, LLADA, random_state(LLADA))
    save_words(folder)
    return folder


@dataclass(frozen=True)
class Ran:
    """The same two commands, by two processes and by one."""

    folder: Path
    shown: list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("commands")
    model = save_llada(folder / "model")
    # The last one is too long for the model: a failure that both must see alike.
    lines: list[Any] = [
        {"id": f"p{k}", "prompt": " ".join(f"w{k + j}" for j in range(2 + k)), "length": 6}
        for k in range(5)
    ]
    lines.append({"id": "long", "prompt": "w1 " * 60, "length": 6})
    prompts = write_lines(folder / "prompts.jsonl", lines)

    def commands(kind: str) -> list[list[str]]:
        start = ["generate", "--model", str(model), *SAMPLED]
        one = ["--prompt", "-", "--length", "6", "--json", str(folder / f"{kind}.json")]
        many = ["--input", str(prompts), "--output", str(folder / kind), "--batch", "2"]
        return [[*start, *one], [*start, *many, "--shards", "2"]]

    given = json.dumps([[*command, "--tensor-parallel", "2"] for command in commands("two")])
    with ranks_running(2, Path(__file__).with_name("two_rank_commands.py"), folder, given):
        for command in commands("one"):
            CliRunner().invoke(app, command, input="w3 w4 w5\n")
    return Ran(folder, [json.loads((folder / f"shown{k}.json").read_text()) for k in range(2)])


def test_a_prompt_is_written_as_by_one_process_and_shown_once(ran: Ran) -> None:
    two, one = (json.loads((ran.folder / f"{kind}.json").read_text()) for kind in ("two", "one"))
    assert len(one["ids"]) == 9
    assert two["ids"] == one["ids"]
    assert two["prompt"] == "w3 w4 w5", "standard input is read by one and told to the other"
    (leader, _), (follower, _) = ran.shown
    assert leader["exit"] == follower["exit"] == 0, leader["error"] + follower["error"]
    assert one["text"] in leader["out"]
    assert follower["out"] == ""


def test_a_file_of_prompts_is_answered_as_by_one_process_and_stored_once(ran: Ran) -> None:
    two, one = (answers_of(ran.folder / kind / "answers.jsonl") for kind in ("two", "one"))
    assert [answer["id"] for answer in one] == [f"p{k}" for k in range(5)]
    assert two == one
    failures = [answers_of(ran.folder / kind / "failures.jsonl") for kind in ("two", "one")]
    assert failures[0] == failures[1]
    assert [failure["id"] for failure in failures[0]] == ["long"]
    (_, leader), (_, follower) = ran.shown
    assert leader["exit"] == 1, "a prompt without an answer"
    assert "5 of 6 prompts answered" in leader["out"]
    assert (follower["exit"], follower["out"]) == (0, "")


def test_a_job_says_over_how_many_processes_it_is_shared_out(ran: Ran, tmp_path: Path) -> None:
    job = json.loads((ran.folder / "two" / "job.json").read_text())
    assert job["model"]["tensor_parallel"] == 2
    prompts = write_lines(tmp_path / "p.jsonl", [{"id": 1, "prompt": "w1"}])
    jobs = [
        GenerationJob.of(ModelSource("m", tensor_parallel=n), prompts, TextOptions(), length=2)
        for n in (1, 2)
    ]
    assert jobs[0].identity != jobs[1].identity


def test_without_as_many_processes_it_is_said_how_to_start_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=r"needs 4 processes, and there are 1: start it by torchr"):
        RankGroup.join(4, "cpu")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="device must be cpu or cuda, one GPU per process"):
        RankGroup.join(4, "cuda:1")


def test_workers_of_its_own_do_not_go_with_processes_of_torchrun(tmp_path: Path) -> None:
    group = RankGroup(0, None, None)  # type: ignore[arg-type]
    given = (ModelSource("m"), tmp_path / "p", tmp_path, TextOptions(), {"shards": 1})
    with pytest.raises(ValueError, match="workers and executor do not go with tensor-parallel"):
        run_sharded_generation(*given, Sharding(workers=2), None, group)


class Crowded:
    """A denoiser and a mesh at once, whose memory is full."""

    def get_group(self) -> None:
        return None

    def predict(self, batch: int) -> None:
        raise torch.OutOfMemoryError("no memory")

    predict_window = predict_changed = entropy_gradient = bridge_scores = predict


@pytest.mark.parametrize(
    "call",
    ["predict", "predict_window", "predict_changed", "entropy_gradient", "bridge_scores"],
)
def test_a_rank_without_memory_does_not_go_on_in_halves_alone(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    together = act_together(Crowded(), Crowded())  # type: ignore[type-var, arg-type]
    with pytest.raises(RankOutOfMemory, match=r"rank 1 ran out of memory; .* a smaller batch"):
        getattr(together, call)(8)
    assert not issubclass(RankOutOfMemory, torch.OutOfMemoryError)
