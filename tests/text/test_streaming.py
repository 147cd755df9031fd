"""Pieces of text as they become final, and the canvas step by step."""

from __future__ import annotations

import pytest
from position_writer import byte_tokens, characters, writer

from boe import Draft, Reply, TextGenerator, TextOptions


def stream(model, prompt: str, **changes: object) -> tuple[list[str], Reply]:
    pieces: list[str] = []
    options = TextOptions(sampler="confidence", max_new_tokens=8)
    reply = TextGenerator(model, options).complete(
        prompt, on_text=lambda number, piece: pieces.append(piece), **changes
    )
    return pieces, reply


def test_pieces_come_as_their_beginning_is_complete_and_add_up_to_the_text() -> None:
    pieces, reply = stream(writer(characters(), ("Q", "abcdabcd"), later=(2,)), "Q")
    assert pieces == ["a", "b", "cdabcd"]
    assert "".join(pieces) == reply.text


def test_what_may_become_a_stop_text_is_held_back() -> None:
    answer = [*"a", "b\n", "c", "b\n", "Q", ":a", "c", "c"]
    pieces, reply = stream(writer(characters(), ("Q", answer)), "Q", stop=("\nQ:",))
    assert pieces == ["a", "b", "\nc", "b"]
    assert reply.text == "ab\ncb"


def test_ends_are_not_streamed() -> None:
    pieces, reply = stream(writer(characters(), ("Q", "ab<eos>ccccc")), "Q")
    assert pieces == ["a", "b"]
    pieces, _ = stream(writer(characters(), ("Q", "ab<eos>ccccc")), "Q", early_stop=False)
    assert pieces == ["a", "b"]
    assert reply.finish == "end"


def test_a_character_of_several_bytes_comes_whole() -> None:
    text = "aé€b"
    pieces, reply = stream(writer(byte_tokens(), ("Q", text)), "Q", max_new_tokens=7)
    assert reply.text == text
    assert pieces == ["a", "é", "€", "b"]


@pytest.mark.parametrize(
    ("sampler", "blocks", "count"),
    [("remdm-llada:loops=2,ratio=0.7", 4, 2), ("random+smc:every=2,particles=2", None, 1)],
)
def test_what_may_still_change_is_not_streamed(
    sampler: str, blocks: int | None, count: int
) -> None:
    pieces, reply = stream(
        writer(characters(), ("Q", "abcdabcd")),
        "Q",
        sampler=sampler,
        block_length=blocks,
        temperature=0.3,
    )
    assert len(pieces) == count
    assert "".join(pieces) == reply.text


def test_drafts_show_the_whole_canvas_after_each_step() -> None:
    drafts: list[Draft] = []
    options = TextOptions(sampler="confidence", max_new_tokens=3)
    model = TextGenerator(writer(characters(), ("Q", "abc"), later=(0,)), options)
    model.complete("Q", on_draft=lambda number, draft: drafts.append(draft))
    assert [draft.text for draft in drafts] == ["Q[MASK]b[MASK]", "Q[MASK]bc", "Qabc"]
    assert [draft.masks for draft in drafts] == [2, 1, 0]
    assert [draft.step for draft in drafts] == [1, 2, 3]
