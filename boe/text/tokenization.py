"""From texts to ids and back: special tokens around prompts, and where an answer stops."""

from __future__ import annotations

import re
from collections.abc import Sequence
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

    def opening(self, ids: Sequence[int]) -> list[int]:
        """Special tokens to put before ``ids``: none if they begin with these already."""
        start = list(ids[: len(self.prefix)])
        return [] if self.prefix and start == self.prefix else list(self.prefix)

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
        text = self.decode(ids)
        text = text[: min((text.find(stop) for stop in until if stop in text), default=None)]
        special = [token for token in self.tokenizer.all_special_tokens if token]
        special += [token for token in _TURN_ENDS if token in self.tokenizer.get_vocab()]
        if skip_special and special:
            text = re.sub("|".join(map(re.escape, special)), "", text)
        return text

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """Messages in the tokenizer's chat template.

        Without ``add_generation_prompt`` the last message is left open, to be continued.

        Raises:
            ValueError: the tokenizer has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template: give plain prompts instead")
        text: str = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
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


def _holds(text: str, until: Sequence[str]) -> bool:
    return any(stop in text for stop in until)
