"""Prompt files and how they are dealt to shards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from prompt_files import write_lines, write_prompts

from boe.scaling.job import GenerationJob, ModelSource
from boe.scaling.prompts import Deal, Prompt, read_prompts
from boe.text import TextOptions


def test_prompts_and_conversations_are_read_with_their_lines(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "the cat"}]
    path = write_lines(
        tmp_path / "p.jsonl",
        [
            {"id": "a", "prompt": "the cat", "length": 3, "meta": {"answer": 4}},
            {"id": 7, "messages": said},
        ],
    )
    path.write_text("\n" + path.read_text())
    assert read_prompts(path) == [
        Prompt("a", 2, prompt="the cat", length=3, meta={"answer": 4}),
        Prompt("7", 3, messages=tuple(said)),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "x"}, "id: must be a text or a whole number, got null"),
        ({"id": True, "prompt": "x"}, "id: must be a text or a whole number, got true"),
        ({"id": "b"}, "prompt: give a prompt or messages, got neither"),
        ({"id": "b", "prompt": "x", "messages": []}, "prompt: give a prompt or messages, got both"),
        ({"id": "b", "prompt": 3}, "prompt: must be a text, got 3"),
        ({"id": "b", "prompt": "x", "lenght": 3}, "lenght: unknown field.*did you mean length"),
        ({"id": "b", "prompt": "x", "answer": 3}, "answer: unknown field.*goes into meta"),
        ({"id": "b", "prompt": "x", "length": -1}, "length: must be a whole number from 0 to"),
        ({"id": "b", "prompt": "x", "length": 10**30}, "length: must be a whole number from 0 to"),
        ({"id": "b", "prompt": "x", "meta": math.nan}, "holds NaN, which JSON has no number for"),
        ({"id": "b", "messages": []}, "messages: must be a list of at least one"),
        ({"id": "b", "messages": [{"role": "user"}]}, r"messages\[0\]: must be an object of role"),
        (
            {"id": "b", "messages": [{"role": "user", "content": None}]},
            r"messages\[0\].content: must be a text, got null",
        ),
        ({"id": "a", "prompt": "y"}, "id: 'a' is that of line 1 too"),
        (["a"], "must be an object"),
    ],
)
def test_a_line_that_does_not_fit_is_named_with_file_and_field(
    tmp_path: Path, line: Any, message: str
) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"id": "a", "prompt": "x"}, line])
    with pytest.raises(ValueError, match=f"p.jsonl, line 2: {message}"):
        read_prompts(path)


def test_a_line_that_is_nested_too_deep_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "prompt": "x", "meta": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(ValueError, match=r"p.jsonl, line 1: is nested too deep"):
        read_prompts(path)


def test_broken_json_and_empty_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a",\n')
    with pytest.raises(ValueError, match=r"p\.jsonl, line 1: Expecting"):
        read_prompts(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(path)


@pytest.mark.parametrize(("own", "jobs"), [(0, 5), (None, 0)])
def test_a_conversation_without_a_length_is_named_before_a_model_is_loaded(
    own: int | None, jobs: int, tmp_path: Path
) -> None:
    said = [{"role": "user", "content": "the cat"}]
    lines = [{"id": "a", "prompt": "the cat", "length": 3}, {"id": "b", "messages": said}]
    lines[1] |= {} if own is None else {"length": own}
    path = write_lines(tmp_path / "p.jsonl", lines)
    job = GenerationJob.of(ModelSource("nowhere"), path, TextOptions(), length=jobs)
    with pytest.raises(ValueError, match=r"p\.jsonl, line 2: length: must be at least 1 for mess"):
        job.deal()


def test_half_a_surrogate_pair_is_named_by_its_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"id": "a", "prompt": "x", "meta": ["\ud83d"]}])
    with pytest.raises(ValueError, match="line 1: holds half of a surrogate pair"):
        read_prompts(path)
    write_lines(path, [{"id": "a", "prompt": "x", "meta": ["\U0001f600"]}])
    assert read_prompts(path)[0].meta == ["\U0001f600"]


def test_draws_hang_on_the_id_alone() -> None:
    assert Prompt("a", 1, prompt="x").key == Prompt("a", 9, prompt="y", length=3).key
    assert Prompt("a", 1, prompt="x").key != Prompt("b", 1, prompt="x").key
    assert 0 <= Prompt("a", 1, prompt="x").key < 2**63


def test_the_number_of_shards_does_not_change_who_is_decoded_together(tmp_path: Path) -> None:
    prompts = read_prompts(write_prompts(tmp_path / "p.jsonl", 23))
    batches = set(Deal.of(prompts, 3, 1).shards[0])
    assert len(batches) == 9
    for shards in (2, 5, 9):
        dealt = Deal.of(prompts, 3, shards).shards
        assert len(dealt) == shards
        assert {batch for shard in dealt for batch in shard} == batches
    assert {p.line for batch in batches for p in batch} == set(range(1, 24))
    with pytest.raises(ValueError, match="shards must be at most 9"):
        Deal.of(prompts, 3, 10)
