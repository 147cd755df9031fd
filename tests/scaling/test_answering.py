"""Answering shards in one process, and putting them together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prompt_files import answers_of, begin, write_lines, write_prompts

from boe.denoisers.loading import LoadedModel
from boe.scaling.answering import Replica, isolating
from boe.scaling.job import GenerationJob, JobFolder, ModelSource
from boe.scaling.merging import forget_failures, merge
from boe.text import TextOptions


def run_all(folder: JobFolder, loaded: LoadedModel) -> list[dict[str, Any]]:
    replica = Replica(folder, loaded)
    for shard in range(folder.read().shards):
        replica.run_shard(shard)
    merge(folder)
    return answers_of(folder.answers)


def test_answers_do_not_depend_on_shards_batches_order_or_other_prompts(
    tmp_path: Path, tiny_bert: Path, loaded: LoadedModel
) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 11)
    one = run_all(begin(tmp_path / "one", tiny_bert, prompts), loaded)
    assert [line["id"] for line in one] == [f"p{k}" for k in range(11)]
    assert run_all(begin(tmp_path / "three", tiny_bert, prompts, shards=3), loaded) == one
    # The logits of a batch are others in their last bits, which moves no draw here.
    assert run_all(begin(tmp_path / "batch", tiny_bert, prompts, batch_size=4), loaded) == one
    turned = [json.loads(text) for text in prompts.read_text().splitlines()][::-2]
    other = write_lines(tmp_path / "other.jsonl", turned)
    answers = {line["id"]: line["answer"] for line in one}
    for line in run_all(begin(tmp_path / "other", tiny_bert, other), loaded):
        assert line["answer"] == answers[line["id"]]
    drawn = run_all(begin(tmp_path / "seed", tiny_bert, prompts, seed=1), loaded)
    assert [line["answer"] for line in drawn] != [line["answer"] for line in one]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_length": 4, "kv_cache": "exact"}, "block-causal"),
        ({"sampler": "mdlm", "delay": ("the",)}, "delay needs a policy that ranks positions"),
        ({"suppress": ("unheard-of",)}, "suppress 'unheard-of'"),
    ],
)
def test_options_that_do_not_go_together_are_no_prompts_fault(
    options: dict, message: str, tmp_path: Path, tiny_bert: Path, loaded: LoadedModel
) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 3)
    folder = JobFolder(tmp_path / "out")
    job = GenerationJob.of(ModelSource(str(tiny_bert)), prompts, TextOptions(**options))
    folder.open(job)
    with pytest.raises(ValueError, match=message):
        Replica(folder, loaded)


def test_a_prompt_that_fails_is_named_and_the_rest_of_its_batch_kept(
    tmp_path: Path, tiny_bert: Path, loaded: LoadedModel
) -> None:
    path = write_lines(
        tmp_path / "p.jsonl",
        [
            {"id": "good", "prompt": "the cat", "length": 2, "meta": [1]},
            {"id": "long", "prompt": "the " * 60, "length": 2},
            {"id": "full", "prompt": "the cat", "length": 0},
            {"id": "chat", "messages": [{"role": "user", "content": "hi"}], "length": 2},
            {"id": "inner", "prompt": "the [MASK] sat", "length": 0},
        ],
    )
    folder = begin(tmp_path / "out", tiny_bert, path, batch_size=5)
    answers = run_all(folder, loaded)
    assert [line["id"] for line in answers] == ["good", "inner"]
    assert answers[0]["meta"] == [1]
    assert answers[1]["answer"].split()[::2] == ["the", "sat"]
    assert answers[1]["gaps"] == [answers[1]["answer"].split()[1]]
    failures = {line["id"]: line["error"] for line in answers_of(folder.failures)}
    assert failures["long"].startswith("ValueError: the canvas would have 64 positions")
    assert "has no gap" in failures["full"]
    assert "no chat template" in failures["chat"]
    summary = json.loads(folder.summary.read_text())
    assert (summary["prompts"], summary["answered"], summary["failed"]) == (5, 2, 3)
    assert summary["totals"]["steps"] == sum(line["steps"] for line in answers)


def test_conversations_are_answered_in_the_chat_template(
    tmp_path: Path, tiny_bert: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    monkeypatch.setattr(loaded.tokenizer, "chat_template", template)
    said = [{"role": "user", "content": "the cat"}, {"role": "user", "content": "sat"}]
    lines = [{"id": "a", "messages": said, "length": 3}, {"id": "b", "prompt": "x", "length": 3}]
    path = write_lines(tmp_path / "p.jsonl", lines)
    folder = begin(tmp_path / "out", tiny_bert, path, batch_size=2)
    answers = run_all(folder, loaded)
    assert [line["id"] for line in answers] == ["a", "b"]
    assert all(line["tokens"] <= 3 and line["steps"] <= 3 for line in answers)


def test_an_answer_that_was_stored_outlasts_a_failure_of_its_batch(
    tmp_path: Path, tiny_bert: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 2)
    folder = begin(tmp_path / "out", tiny_bert, prompts, batch_size=2)
    expected = run_all(folder, loaded)
    lines = folder.progress(0).read_text().splitlines(keepends=True)
    folder.progress(0).write_text("".join(lines[:-1]))
    kept = json.loads(lines[-2])["item"]

    def failing(self: Replica, batch: Any) -> Any:
        raise torch.OutOfMemoryError("too little memory")

    monkeypatch.setattr(Replica, "_write", failing)
    assert run_all(folder, loaded) == [line for line in expected if line["line"] == kept]
    (failure,) = answers_of(folder.failures)
    assert failure["error"] == "OutOfMemoryError: too little memory"


def test_a_batch_that_fails_as_a_whole_is_taken_apart() -> None:
    sizes = []

    def run(numbers: list[int]) -> list[int]:
        sizes.append(len(numbers))
        if 3 in numbers:
            raise ValueError("three")
        if len(numbers) > 2:
            raise torch.OutOfMemoryError("too many")
        return [10 * n for n in numbers]

    *good, failed, last = isolating(run, [1, 2, 7, 3, 4])
    assert (good, last) == ([10, 20, 70], 40)
    assert isinstance(failed, ValueError)
    assert sizes == [5, 3, 2, 1, 2, 1, 1]
    assert isolating(run, []) == []


def test_what_no_prompt_is_to_blame_for_is_not_put_down_to_one() -> None:
    def broken(numbers: list[int]) -> list[int]:
        raise torch.AcceleratorError("the device is gone")

    with pytest.raises(torch.AcceleratorError):
        isolating(broken, [1, 2])


def test_an_interrupted_shard_goes_on_with_the_batches_of_an_undisturbed_one(
    tmp_path: Path, tiny_bert: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 9)
    expected = run_all(begin(tmp_path / "whole", tiny_bert, prompts, batch_size=3), loaded)
    folder = begin(tmp_path / "cut", tiny_bert, prompts, batch_size=3)
    run_all(folder, loaded)
    # A batch and one line of the next were on disk, and half of a line more.
    lines = folder.progress(0).read_text().splitlines(keepends=True)
    folder.progress(0).write_text("".join(lines[:6]) + lines[6][:20])
    folder.shard(0).unlink()
    decoded = []
    decode = Replica._write
    monkeypatch.setattr(
        Replica, "_write", lambda self, batch: decoded.append(len(batch)) or decode(self, batch)
    )
    assert run_all(folder, loaded) == expected
    assert decoded == [3, 3]


def test_the_same_output_takes_the_same_job_only(
    tmp_path: Path, tiny_bert: Path, loaded: LoadedModel
) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 4)
    folder = begin(tmp_path / "out", tiny_bert, prompts)
    begin(tmp_path / "out", tiny_bert, prompts)
    with pytest.raises(ValueError, match=r"options\.seed was 0, now 1; give a new output"):
        begin(tmp_path / "out", tiny_bert, prompts, seed=1)
    write_prompts(prompts, 5)
    with pytest.raises(ValueError, match="input_digest was"):
        begin(tmp_path / "out", tiny_bert, prompts)
    with pytest.raises(ValueError, match=r"p\.jsonl has changed since the job began"):
        Replica(folder, loaded)
    with pytest.raises(FileNotFoundError, match="holds no job"):
        JobFolder(tmp_path).read()


def test_shards_of_different_weights_or_defaults_are_not_put_together(
    tmp_path: Path, tiny_bert: Path, loaded: LoadedModel
) -> None:
    folder = begin(tmp_path / "out", tiny_bert, write_prompts(tmp_path / "p.jsonl", 4), shards=2)
    run_all(folder, loaded)
    report = json.loads(folder.report(1).read_text())
    for name, message in (("denoiser", "different weights"), ("decided_by", "defaults")):
        folder.report(1).write_text(json.dumps({**report, name: "f" * 32}))
        with pytest.raises(ValueError, match=rf"{message}.* \(.*: 0; ffffffffff: 1\)"):
            merge(folder)


def test_a_lost_or_doubled_line_is_noticed(
    tmp_path: Path, tiny_bert: Path, loaded: LoadedModel
) -> None:
    folder = begin(tmp_path / "out", tiny_bert, write_prompts(tmp_path / "p.jsonl", 4))
    run_all(folder, loaded)
    whole = folder.shard(0).read_text()
    for text in (whole + whole.splitlines(keepends=True)[0], whole.partition("\n")[2]):
        folder.shard(0).write_text(text)
        with pytest.raises(ValueError, match="their reports say 4"):
            merge(folder)


def test_only_shards_with_failures_are_tried_again(
    tmp_path: Path, tiny_bert: Path, loaded: LoadedModel
) -> None:
    lines = [{"id": k, "prompt": "the cat", "length": 1} for k in range(3)]
    lines[1]["length"] = 99
    folder = begin(tmp_path / "out", tiny_bert, write_lines(tmp_path / "p.jsonl", lines), shards=3)
    run_all(folder, loaded)
    assert folder.unfinished(3) == [0, 1, 2]
    folder.marker(0).parent.mkdir(parents=True)
    for shard in range(3):
        folder.marker(shard).touch()
    assert forget_failures(folder, 3) == 1
    (again,) = folder.unfinished(3)
    assert json.loads(folder.shard(again).read_text())["id"] == "1"


def test_many_shards_are_merged_with_few_open_files(
    tmp_path: Path, tiny_bert: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 7)
    expected = run_all(begin(tmp_path / "a", tiny_bert, prompts), loaded)
    monkeypatch.setattr("boe.scaling.merging._OPEN_FILES", 2)
    assert run_all(begin(tmp_path / "b", tiny_bert, prompts, shards=7), loaded) == expected
