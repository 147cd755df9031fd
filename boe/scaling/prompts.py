"""Prompt files: one JSON object per line, checked before any work begins."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST = 2**31 - 1
FIELDS = ("id", "prompt", "messages", "length", "meta")


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt file.

    Attributes:
        id: names it, and with the seed fixes its random draws.
        line: 1-based, in the file.
        prompt: a text to continue; where no masks are appended, one in which the model's
            mask token marks what is to be filled in. Or
        messages: a conversation, for the tokenizer's chat template.
        length: masks appended; what the job says if ``None``.
        meta: anything; goes into the answer as it is.
    """

    id: str
    line: int
    prompt: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    length: int | None = None
    meta: Any = None

    @property
    def key(self) -> int:
        """What its random draws depend on, beside the seed: its id, and nothing else."""
        return int.from_bytes(hashlib.blake2b(self.id.encode(), digest_size=8).digest()) >> 1

    @property
    def kind(self) -> Literal["text", "chat"]:
        return "text" if self.messages is None else "chat"

    @property
    def characters(self) -> int:
        """How long its text is."""
        if self.prompt is not None:
            return len(self.prompt)
        return sum(len(message["content"]) for message in self.messages or ())


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in order. Empty lines are passed over.

    Raises:
        ValueError: a line that is no prompt, two of one id, or none at all; the message
            gives file, line and field.
    """
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                content = json.loads(text, parse_constant=_no_json)
                if _SURROGATE.search(json.dumps(content, ensure_ascii=False)):
                    raise ValueError("holds half of a surrogate pair, which is no character")
                prompt = _prompt(content, number)
                if prompt.id in seen:
                    raise ValueError(f"id: {prompt.id!r} is that of line {seen[prompt.id]} too")
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            except RecursionError:
                raise ValueError(f"{path}, line {number}: is nested too deep") from None
            seen[prompt.id] = number
            prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return prompts


def digest_of_file(path: Path) -> str:
    """A digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=10)).hexdigest()


def _no_json(constant: str) -> Any:
    raise ValueError(f"holds {constant}, which JSON has no number for")


def _prompt(content: Any, line: int) -> Prompt:
    if not isinstance(content, dict):
        raise ValueError(f"must be an object, got {_shown(content)}")
    for name in content:
        if name not in FIELDS:
            near = get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {near[0]}?" if near else "what is to be kept goes into meta"
            raise ValueError(f"{name}: unknown field, known are {', '.join(FIELDS)}; {hint}")
    name = content.get("id")
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not name:
        raise ValueError(f"id: must be a text or a whole number, got {_shown(name)}")
    text, messages = content.get("prompt"), content.get("messages")
    if (text is None) == (messages is None):
        given = "neither" if text is None else "both"
        raise ValueError(f"prompt: give a prompt or messages, got {given}")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"prompt: must be a text, got {_shown(text)}")
    length = content.get("length")
    if length is not None and (type(length) is not int or not 0 <= length <= _LONGEST):
        raise ValueError(
            f"length: must be a whole number from 0 to {_LONGEST}, got {_shown(length)}"
        )
    spoken = None if messages is None else _messages(messages)
    return Prompt(name, line, text, spoken, length, content.get("meta"))


def _messages(messages: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages: must be a list of at least one, got {_shown(messages)}")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(
                f"messages[{place}]: must be an object of role and content, got {_shown(message)}"
            )
        for name, value in message.items():
            if not isinstance(value, str):
                raise ValueError(f"messages[{place}].{name}: must be a text, got {_shown(value)}")
    return tuple(messages)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


@dataclass(frozen=True)
class Deal:
    """Prompts in batches, and batches in shards.

    Batches are made of the whole file, of prompts of one kind that get equally many masks
    and are of like length, and dealt to the shards in turn. So neither the number of shards
    nor what was done before a restart changes which prompts are decoded together, and
    thereby how their logits are rounded.
    """

    shards: tuple[tuple[tuple[Prompt, ...], ...], ...]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], batch_size: int, shards: int) -> Deal:
        """Deal ``prompts``, each of which has a length, to ``shards`` shards.

        Raises:
            ValueError: more shards than batches.
        """

        def alike(prompt: Prompt) -> tuple[int, str]:
            return -(prompt.length or 0), prompt.kind

        def order(prompt: Prompt) -> tuple[tuple[int, str], int, int]:
            return alike(prompt), -prompt.characters, prompt.line

        batches: list[tuple[Prompt, ...]] = []
        for _, group in groupby(sorted(prompts, key=order), key=alike):
            several = tuple(group)
            starts = range(0, len(several), batch_size)
            batches += [several[start : start + batch_size] for start in starts]
        if shards > len(batches):
            raise ValueError(
                f"shards must be at most {len(batches)}, the number of batches that "
                f"{len(prompts)} prompts make at {batch_size} each, got {shards}"
            )
        return cls(tuple(tuple(batches[shard::shards]) for shard in range(shards)))
