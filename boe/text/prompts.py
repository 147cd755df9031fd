"""From prompts, chats and texts with gaps to canvases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boe.text.tokenization import Texts

Message = Mapping[str, str]
Parts = str | Sequence[str | int]
"""A text with gaps: with mask tokens in it, or its pieces, numbers standing for gaps."""

_SHOWN = 60


@dataclass(frozen=True)
class Prompt:
    """A prompt as a canvas.

    Attributes:
        number: its place among those given.
        shown: its beginning, for messages.
        ids: the canvas: special tokens, prompt, masks, closing special tokens.
        start, end: where the text that is asked for stands: of a prompt what is written,
            of a text with gaps everything between the special tokens.
        gaps: the stretches of masks, for a text with gaps.
    """

    number: int
    shown: str
    ids: tuple[int, ...]
    start: int
    end: int
    gaps: tuple[range, ...] = ()

    def canvas(self, device: torch.device) -> Tensor:
        """int64 (L,)."""
        return torch.tensor(self.ids, device=device)


def beginning(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def plain_prompt(texts: Texts, number: int, text: str, length: int) -> Prompt:
    """``length`` masks behind a prompt, before what closes a text of this tokenizer.

    Raises:
        ValueError: the prompt holds the mask token.
    """
    opening, ids = texts.opened(texts.encode(text))
    return _continued(texts, number, beginning(text), [*opening, *ids], length, True)


def prompt_ids(texts: Texts, prompt: str, length: int) -> tuple[Tensor, range]:
    """Ids of a prompt, which may hold masks, with ``length`` more behind it, int64 (L,); and
    where these stand.

    Raises:
        ValueError: there is nothing to fill in.
    """
    opening, inner = texts.opened(texts.encode_with_masks(prompt))
    start = len(opening) + len(inner)
    ids = [*opening, *inner, *[texts.mask_id] * length, *texts.suffix]
    if texts.mask_id not in ids:
        raise ValueError(f"the prompt holds no {texts.mask} and length is 0: nothing to fill in")
    return torch.tensor(ids), range(start, start + length)


def chat_prompt(texts: Texts, number: int, messages: Sequence[Message], length: int) -> Prompt:
    """``length`` masks behind a conversation in the tokenizer's chat template.

    If the last message is the assistant's it is left open and continued. Special tokens are
    those that the template writes, and no others.

    Raises:
        ValueError: no message, no template, or a message that holds the mask token.
    """
    if not messages:
        raise ValueError("a chat must hold at least one message, got none")
    for place, message in enumerate(messages):
        for key in ("role", "content"):
            if key not in message:
                raise ValueError(f"message {place} must have a {key}, got {dict(message)!r}")
    opens_turn = messages[-1]["role"] != "assistant"
    ids = texts.encode(texts.chat([dict(message) for message in messages], opens_turn))
    return _continued(
        texts, number, beginning(str(messages[-1]["content"])), ids, length, closes=False
    )


def gapped_prompt(texts: Texts, number: int, parts: Parts) -> Prompt:
    """A text with gaps.

    Raises:
        ValueError: there is no gap, or one of no length.
    """
    if isinstance(parts, str):
        ids = texts.encode_with_masks(parts)
        shown = parts
    else:
        ids, shown = [], ""
        for part in parts:
            if isinstance(part, str):
                ids += texts.encode(part)
                shown += part
                continue
            if isinstance(part, bool) or not isinstance(part, int):
                raise TypeError(f"pieces must be texts and lengths of gaps, got {part!r}")
            if part < 1:
                raise ValueError(f"a gap must be at least 1 token long, got {part}")
            ids += [texts.mask_id] * part
            shown += f"[{part}]"
    opening, rest = texts.opened(ids)
    ids, closing = [*opening, *rest], texts.suffix
    gaps: list[range] = []
    for place, token in enumerate(ids):
        if token == texts.mask_id:
            if gaps and gaps[-1].stop == place:
                gaps[-1] = range(gaps[-1].start, place + 1)
            else:
                gaps.append(range(place, place + 1))
    if not gaps:
        raise ValueError(
            f"the text has no gap: give {texts.mask} in it, or its pieces with the lengths of "
            "gaps as numbers"
        )
    whole = (*ids, *closing)
    return Prompt(number, beginning(shown), whole, len(opening), len(ids), tuple(gaps))


def _continued(
    texts: Texts, number: int, shown: str, ids: list[int], length: int, closes: bool
) -> Prompt:
    closing = texts.suffix if closes else []
    whole = (*ids, *[texts.mask_id] * length, *closing)
    return Prompt(number, shown, whole, len(ids), len(ids) + length)
