"""From texts to ids and back: special tokens around prompts, and where an answer stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Ends of turns that tokenizers do not name as their end of text.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")


class Texts:
    """A tokenizer as writing and judging texts needs it.

    Args:
        tokenizer: of the model.
        mask_id: of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mask_id: int) -> None:
        self.tokenizer: Any = tokenizer
        self.mask_id = mask_id
        self.prefix, self.suffix = self._frame()

    @property
    def mask(self) -> str:
        """The mask as messages name it."""
        return self.tokenizer.mask_token or f"mask (id {self.mask_id})"

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens around it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        if self.mask_id in ids:
            raise ValueError(f"the text holds the mask token (id {self.mask_id}): {text[:80]!r}…")
        return ids

    def encode_with_masks(self, text: str) -> list[int]:
        """Ids of a text in which mask tokens mark gaps, without special tokens around it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def opened(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The special tokens before ``ids``, and what follows them in ``ids``."""
        start = list(ids[: len(self.prefix)])
        return list(self.prefix), list(ids[len(self.prefix) if start == self.prefix else 0 :])

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of its continuation, tokenised together, as lm-eval does.

        White space at the end of the context goes to the continuation.

        Raises:
            ValueError: the continuation has no token of its own.
        """
        bare = context.rstrip()
        whole = self.encode(context + continuation)
        given = self.encode(bare)
        if len(whole) <= len(given):
            raise ValueError(f"the continuation {continuation!r} has no token of its own")
        return whole[: len(given)], whole[len(given) :]

    def id_of(self, argument: str, token: str) -> int:
        """The id of one token.

        Raises:
            ValueError: ``token`` is not one; the message names the argument.
        """
        ids = self.encode(token)
        if len(ids) != 1:
            raise ValueError(f"{argument} must hold single tokens, {token!r} is {len(ids)}")
        if ids[0] == self.tokenizer.unk_token_id and token != self.tokenizer.unk_token:
            raise ValueError(f"{argument} must hold single tokens, {token!r} is none")
        return ids[0]

    def end_ids(self, named: Sequence[str] | None) -> tuple[int, ...]:
        """Ids that end an answer: the named ones, or the ends of text and of turn."""
        if named is not None:
            return tuple(self.id_of("eos", token) for token in named)
        vocabulary = self.tokenizer.get_vocab()
        found = [vocabulary[token] for token in _TURN_ENDS if token in vocabulary]
        if self.tokenizer.eos_token_id is not None:
            found.append(self.tokenizer.eos_token_id)
        return tuple(sorted({*found} - {self.mask_id}))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that are no part of a text: what the tokenizer marks so, and ends of turns."""
        vocabulary = self.tokenizer.get_vocab()
        added = self.tokenizer.added_tokens_decoder
        return frozenset(
            (
                *self.tokenizer.all_special_ids,
                *(index for index, token in added.items() if token.special),
                *(vocabulary[token] for token in _TURN_ENDS if token in vocabulary),
            )
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens included."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def stop_in(self, ids: Sequence[int], until: Sequence[str]) -> int | None:
        """Number of leading ids whose text holds a stop text; ``None`` if all of it has none.

        Texts are searched, not ids: a stop text may be tokenised in several ways, or end
        within a token.
        """
        if not until or not _holds(self.decode(ids), until):
            return None
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            if _holds(self.decode(ids[:middle]), until):
                high = middle
            else:
                low = middle + 1
        return high

    def answer(self, ids: Sequence[int], until: Sequence[str], skip_special: bool) -> str:
        """The text of ``ids`` before the first stop text."""
        # Special tokens go by their ids: a text may spell one.
        left_out = self.special_ids if skip_special else frozenset()
        stop = self.stop_in(ids, until)
        kept = [token for token in ids[:stop] if token not in left_out]
        if stop is None:
            return self.decode(kept)
        text = self.decode(kept)
        if _holds(text, until):
            return _before(text, until)
        # The stop text itself holds a special token: what stands before it goes by ids, too.
        length = len(_before(self.decode(ids[:stop]), until))
        while len(self.decode(ids[:stop])) > length:
            stop -= 1
        return self.decode([token for token in ids[:stop] if token not in left_out])

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """Messages in the tokenizer's chat template.

        Without ``add_generation_prompt`` the last message is left open, to be continued.

        Raises:
            ValueError: the tokenizer has no chat template, or it refuses the messages.
        """
        if not self.tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template: give plain prompts instead")
        from jinja2 import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses the messages: {error}") from error
        return text

    def _frame(self) -> tuple[list[int], list[int]]:
        """Special tokens that the tokenizer puts before and behind a text."""
        probe = "1"
        inner = list(self.tokenizer(probe, add_special_tokens=False).input_ids)
        whole = list(self.tokenizer(probe).input_ids)
        for start in range(len(whole) - len(inner) + 1):
            if inner and whole[start : start + len(inner)] == inner:
                return whole[:start], whole[start + len(inner) :]
        raise ValueError("the tokenizer does not keep a text together between its special tokens")


def stop_rule(
    spans: Sequence[range],
    ends: Sequence[int] = (),
    until: Sequence[str] = (),
    texts: Texts | None = None,
) -> Callable[[int, list[int]], int | None]:
    """Where answers end, as ``stop_when`` of :func:`boe.generate`.

    Args:
        spans: where each sequence's answer stands.
        ends: ids that end it.
        until: stop texts, which need ``texts``.
    """

    def stop_when(index: int, ids: list[int]) -> int | None:
        """Length of the written beginning of a sequence up to its first end."""
        span = spans[index]
        written = ids[span.start : span.stop]
        end = next((k + 1 for k, token in enumerate(written) if token in ends), None)
        found = None
        if texts is not None and written:
            found = texts.stop_in(written[:end], until)
        length = end if found is None else found
        return None if length is None else span.start + length

    return stop_when


def _before(text: str, until: Sequence[str]) -> str:
    """``text`` before the first stop text, of which it holds one."""
    return text[: min(text.find(stop) for stop in until if stop in text)]


def _holds(text: str, until: Sequence[str]) -> bool:
    return any(stop in text for stop in until)
