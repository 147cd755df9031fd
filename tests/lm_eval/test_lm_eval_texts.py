"""Texts and ids: special tokens around prompts, stop texts, chat templates."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoints import save_tiny_bert
from toy_lm import ID, toy_tokenizer
from transformers import AutoTokenizer

from boe.text.tokenization import Texts

CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    folder: Path = save_tiny_bert(tmp_path_factory.mktemp("bert"))
    return Texts(AutoTokenizer.from_pretrained(folder), MASK)


@pytest.fixture
def plain() -> Texts:
    return Texts(toy_tokenizer(), ID["[MASK]"])


def test_special_tokens_around_texts_are_found(framed: Texts, plain: Texts) -> None:
    assert (framed.prefix, framed.suffix) == ([CLS], [SEP])
    assert (plain.prefix, plain.suffix) == ([], [])


def test_a_text_that_begins_with_them_gets_no_second_ones(framed: Texts, plain: Texts) -> None:
    words = framed.encode("the cat")
    assert framed.opened(words) == framed.opened(framed.encode("[CLS] the cat")) == ([CLS], words)
    assert plain.opened([4, 5]) == ([], [4, 5])


def test_white_space_before_a_continuation_belongs_to_it(plain: Texts) -> None:
    before, scored = plain.encode_pair("ab ", "cd")
    assert before == [ID["a"], ID["b"]]
    assert scored == [ID[" "], ID["c"], ID["d"]]


def test_a_continuation_without_tokens_is_refused(plain: Texts) -> None:
    with pytest.raises(ValueError, match="'' has no token of its own"):
        plain.encode_pair("ab", "")


def test_a_text_that_holds_the_mask_is_refused(plain: Texts) -> None:
    with pytest.raises(ValueError, match=r"holds the mask token \(id 0\)"):
        plain.encode("a[MASK]b")


def test_a_stop_text_is_found_however_it_is_tokenised(plain: Texts) -> None:
    several = [ID[token] for token in ("a", "b\n", "Q", ":a", "c")]
    assert plain.stop_in(several, ["\nQ:"]) == 4  # within the token ":a"
    assert plain.stop_in(several, ["\nQ:", "b"]) == 2
    assert plain.stop_in(several, ["Q\n"]) is None
    assert plain.stop_in(several, []) is None


def test_answers_end_before_the_first_stop_text(plain: Texts) -> None:
    ids = [ID[token] for token in ("a", "b\n", "Q", ":a", "<eos>")]
    assert plain.answer(ids, ["Q", "b"], skip_special=True) == "a"
    assert plain.answer(ids, ["zz"], skip_special=True) == "ab\nQ:a"
    assert plain.answer(ids, [], skip_special=False) == "ab\nQ:a<eos>"
    assert plain.answer(ids, ["<eos>"], skip_special=False) == "ab\nQ:a"


def test_the_ends_of_text_and_turn_are_known_and_can_be_named(plain: Texts) -> None:
    assert plain.end_ids(None) == (ID["<eos>"],)
    assert plain.end_ids(["a", "<eos>"]) == (ID["a"], ID["<eos>"])
    assert plain.end_ids([]) == ()
    with pytest.raises(ValueError, match="eos must hold single tokens, 'ab' is 2"):
        plain.end_ids(["ab"])


def test_a_word_that_the_tokenizer_does_not_know_is_no_token(framed: Texts) -> None:
    assert framed.id_of("eos", "[UNK]") == framed.tokenizer.unk_token_id
    with pytest.raises(ValueError, match="eos must hold single tokens, 'zebra' is none"):
        framed.id_of("eos", "zebra")


def test_chat_templates_open_a_turn_or_go_on_with_the_last(plain: Texts) -> None:
    plain.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    asked = [{"role": "user", "content": "cd"}]
    assert plain.chat(asked, add_generation_prompt=True) == "u:cd\na:"
    begun = [*asked, {"role": "assistant", "content": "<b>"}]
    assert plain.chat(begun, add_generation_prompt=False) == "u:cd\na:<b>"


def test_without_a_chat_template_there_is_no_chat(plain: Texts) -> None:
    with pytest.raises(ValueError, match="has no chat template"):
        plain.chat([{"role": "user", "content": "cd"}], add_generation_prompt=True)
