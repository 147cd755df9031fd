"""How texts are written."""

from __future__ import annotations

from dataclasses import dataclass

from boe.arguments import check_whole
from boe.decoding.setbacks import Failures, check_failures
from boe.prompting import DecodingOptions


@dataclass(frozen=True)
class TextOptions(DecodingOptions):
    """How :class:`boe.TextGenerator` writes; further fields are those of ``boe generate``.

    Attributes:
        max_new_tokens: masks behind a prompt. Text behind an end of text or a stop text is
            left out, so that answers may be shorter.
        stop: texts that end an answer and are left out of it, however they are tokenised.
        eos: tokens that end an answer; by default the tokenizer's end of text and of turn.
        early_stop: stop decoding once everything up to and including an end or a stop text
            is written. Otherwise the whole canvas is decoded and the text cut afterwards.
        skip_special_tokens: leave special tokens out of texts.
        batch_size: prompts decoded together, at most; fewer where memory is short.
        failures: "raise" the error of the first prompt that fails, or "keep" it in the
            prompt's place and go on with the others.
        trajectory: keep a record of every step.

    Raises:
        ValueError: a number outside its range, or an empty stop text.
    """

    max_new_tokens: int = 128
    eos: tuple[str, ...] | None = None
    early_stop: bool = True
    skip_special_tokens: bool = True
    batch_size: int = 8
    failures: Failures = "raise"
    trajectory: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_new_tokens", "batch_size"):
            check_whole(name, getattr(self, name))
        if isinstance(self.eos, str):
            raise TypeError("eos must be a tuple of texts, got one text")
        check_failures(self.failures)
