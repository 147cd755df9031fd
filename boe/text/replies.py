"""What comes back for a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from boe.decoding import Account, Item

Finish = Literal["end", "stop", "length"]


@dataclass(frozen=True)
class Reply:
    """What was written for one prompt.

    Attributes:
        number: the prompt's place among those given.
        text: the answer, without its stop text; of an infilling the whole text.
        ids: the ids written, up to and including the end or stop; of an infilling those
            of all gaps.
        gaps: of an infilling the text of each gap.
        finish: what ended it: an "end" of text or turn, a "stop" text, or the "length".
        item: the whole canvas, its cost and, if asked for, trajectory.
    """

    number: int
    text: str
    ids: tuple[int, ...]
    gaps: tuple[str, ...]
    finish: Finish
    item: Item

    @property
    def account(self) -> Account:
        return self.item.account


@dataclass(frozen=True)
class Failure:
    """A prompt for which nothing could be written, and why.

    Attributes:
        number: the prompt's place among those given.
        prompt: its beginning.
    """

    number: int
    prompt: str
    error: Exception

    def __str__(self) -> str:
        return f"prompt {self.number} ({self.prompt!r}): {self.error}"


@dataclass(frozen=True)
class Draft:
    """A canvas in the middle of a decode.

    Attributes:
        number: the prompt's place among those given.
        ids: the ids of the whole canvas, masks included.
        text: as text, each mask as the tokenizer's mask token.
        masks: how many are left, and step: how many were taken.
    """

    number: int
    ids: tuple[int, ...]
    text: str
    masks: int
    step: int
