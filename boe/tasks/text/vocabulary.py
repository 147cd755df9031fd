"""The characters that all text tasks are written in, and their tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "."
"""Fills an answer region behind the answer. No answer contains it."""

CHARACTERS = "0123456789+-*/()=,:;" + END + " "
TOKENS = ("[PAD]", *CHARACTERS, "[MASK]")
PAD_ID = 0
MASK_ID = len(TOKENS) - 1
_ID_OF = {character: index + 1 for index, character in enumerate(CHARACTERS)}
DIGIT_ID = _ID_OF["0"]
"""Id of the digit 0; the digit d has the id ``DIGIT_ID + d``."""


def encode(text: str) -> list[int]:
    """Ids of ``text``, one per character.

    Raises:
        ValueError: a character is not of the vocabulary.
    """
    for character in text:
        if character not in _ID_OF:
            raise ValueError(
                f"text must consist of the characters {CHARACTERS!r}, got {character!r}"
            )
    return [_ID_OF[character] for character in text]


def decode(ids: Tensor | Sequence[int], mask: str = "_") -> str:
    """Text of ``ids`` (L,); masks become ``mask``.

    Raises:
        ValueError: an id is neither a character nor the mask.
    """
    numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    for number in numbers:
        if not 0 < number <= MASK_ID:
            raise ValueError(f"ids must be in [1, {MASK_ID}], got {number}")
    return "".join(mask if number == MASK_ID else TOKENS[number] for number in numbers)


def encode_all(texts: Sequence[str]) -> Tensor:
    """Ids of texts of equal length, int64 (N, L)."""
    return torch.tensor([encode(text) for text in texts], dtype=torch.int64)


def build_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """The same mapping as a transformers tokenizer; ``length`` is the model's longest text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )
