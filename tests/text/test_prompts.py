"""Prompts as canvases: where masks stand among the special tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_checkpoints import save_tiny_bert
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from boe.text.prompts import prompt_ids
from boe.text.tokenization import Texts

CLS, SEP, MASK, THE, CAT = 2, 3, 4, 5, 6


@pytest.fixture
def bert(tmp_path: Path) -> Texts:
    return Texts(AutoTokenizer.from_pretrained(save_tiny_bert(tmp_path)), MASK)


def bare() -> Texts:
    """A tokenizer that adds no special tokens, as GPT-2's and Qwen's."""
    inner = Tokenizer(models.WordLevel({"1": 0, "the": 1, "[END]": 2}, unk_token="1"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Texts(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[END]"), 7)


@pytest.mark.parametrize(
    ("prompt", "length", "ids", "span"),
    [
        ("the cat", 2, [CLS, THE, CAT, MASK, MASK, SEP], range(3, 5)),
        ("the [MASK]", 0, [CLS, THE, MASK, SEP], range(3, 3)),
        ("the [MASK]", 1, [CLS, THE, MASK, MASK, SEP], range(3, 4)),
        ("", 2, [CLS, MASK, MASK, SEP], range(1, 3)),
        # A special token that the prompt ends with is the prompt's: masks stand behind it.
        ("the cat [SEP]", 1, [CLS, THE, CAT, SEP, MASK, SEP], range(4, 5)),
    ],
)
def test_masks_stand_behind_the_prompt_and_before_what_closes_a_text(
    bert: Texts, prompt: str, length: int, ids: list[int], span: range
) -> None:
    found, where = prompt_ids(bert, prompt, length)
    assert found.tolist() == ids
    assert where == span


@pytest.mark.parametrize(("prompt", "ids"), [("", [7, 7]), ("the [END]", [1, 2, 7, 7])])
def test_a_tokenizer_without_special_tokens_writes_from_nothing_too(
    prompt: str, ids: list[int]
) -> None:
    found, _ = prompt_ids(bare(), prompt, 2)
    assert found.dtype == torch.int64
    assert found.tolist() == ids


def test_nothing_to_fill_in_is_said_with_the_mask_by_name(bert: Texts) -> None:
    with pytest.raises(ValueError, match=r"holds no \[MASK\] and length is 0"):
        prompt_ids(bert, "the cat", 0)
    with pytest.raises(ValueError, match=r"holds no mask \(id 7\) and length is 0"):
        prompt_ids(bare(), "the", 0)
