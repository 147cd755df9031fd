"""Text as it becomes final, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from boe.text.tokenization import Texts

_INCOMPLETE = "\ufffd"
"""What an unfinished character decodes to, where tokens hold bytes."""


class TextStream:
    """Hands out one prompt's answer as it becomes final.

    The pieces add up to the answer, in every tokenizer whose decoding of more ids only adds
    to the text. Held back until it is decided are the end of a text that may become a stop
    text, and bytes that are no whole character yet.

    Args:
        until: stop texts, which are left out with what follows.
        ends: ids that end an answer.
        emit: called with each piece; never with an empty one.
    """

    def __init__(
        self,
        texts: Texts,
        until: Sequence[str],
        ends: frozenset[int],
        skip_special: bool,
        emit: Callable[[str], None],
    ) -> None:
        self._texts, self._until, self._ends = texts, tuple(until), ends
        self._skip_special, self._emit = skip_special, emit
        self._emitted = ""
        self._seen = 0

    def update(self, ids: Sequence[int]) -> None:
        """Note that the answer begins with ``ids``, which will not change any more."""
        if len(ids) == self._seen:
            return
        self._seen = len(ids)
        until_end = next((k for k, token in enumerate(ids) if token in self._ends), len(ids))
        text = self._texts.answer(ids[:until_end], self._until, self._skip_special)
        self._advance(text[: len(text) - self._undecided(text)])

    def close(self, text: str) -> None:
        """Hand out what is left of the whole answer."""
        self._advance(text)

    def _advance(self, text: str) -> None:
        if len(text) > len(self._emitted) and text.startswith(self._emitted):
            piece = text[len(self._emitted) :]
            self._emitted = text
            self._emit(piece)

    def _undecided(self, text: str) -> int:
        """Length of the end of ``text`` that more ids may change or cut off."""
        held = len(text) - len(text.rstrip(_INCOMPLETE))
        for stop in self._until:
            for length in range(min(len(stop) - 1, len(text)), held, -1):
                if text.endswith(stop[:length]):
                    held = length
                    break
        return held
