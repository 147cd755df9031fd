"""Prompts, chats and texts with gaps in; texts out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from boe.decoding import Item, generate
from boe.denoisers.loading import LoadedModel, load_model
from boe.text.options import TextOptions
from boe.text.prompts import (
    Message,
    Parts,
    Prompt,
    beginning,
    chat_prompt,
    gapped_prompt,
    plain_prompt,
)
from boe.text.replies import Draft, Failure, Finish, Reply
from boe.text.streaming import TextStream
from boe.text.tokenization import Texts, stop_rule

OnText = Callable[[int, str], None]
OnDraft = Callable[[int, Draft], None]
Outcome = Reply | Failure


class TextGenerator:
    """Writes texts with a masked language model.

    Every method takes one input or a list of them and answers in kind. Prompts of any
    lengths are decoded together, and each gets what it would get alone, up to rounding.
    Further keywords change :class:`boe.TextOptions` for the call. Callbacks get the
    prompt's number first: ``on_text`` pieces of the answer as they become final,
    ``on_draft`` the whole canvas after each step. With ``failures="keep"`` a
    :class:`boe.Failure` stands where a reply could not be written.

    Args:
        model: as :func:`boe.load_model` gives it.
        options: how texts are written.

    Raises:
        ValueError: a named token that is none of this tokenizer's, or a tokenizer that does
            not keep texts together.
    """

    def __init__(self, model: LoadedModel, options: TextOptions | None = None) -> None:
        if not isinstance(model, LoadedModel):
            raise TypeError(
                "model must be a LoadedModel, as load_model(...) gives it (from a path: "
                f"TextGenerator.from_pretrained), got {type(model).__name__}"
            )
        if options is not None and not isinstance(options, TextOptions):
            raise TypeError(f"options must be TextOptions, got {options!r}")
        self.model = model
        self.options = TextOptions() if options is None else options
        self.texts = Texts(model.tokenizer, model.denoiser.facts.mask_id)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, options: TextOptions | None = None, **loading: Any
    ) -> TextGenerator:
        """A generator on a checkpoint; ``loading`` as in :func:`boe.load_model`."""
        return cls(load_model(source, **loading), options)

    def complete(
        self,
        prompts: str | Sequence[str],
        *,
        on_text: OnText | None = None,
        on_draft: OnDraft | None = None,
        item_ids: Sequence[int] | None = None,
        **changes: Any,
    ) -> Any:
        """Continue plain prompts by ``max_new_tokens``.

        Args:
            prompts: one text, or several.
            item_ids: a number per prompt that fixes its random draws with the seed; by
                default its place.

        Returns:
            Reply: one for one text, a list for several.

        Raises:
            ValueError: a prompt that holds the mask token or does not fit the model.
        """
        one = isinstance(prompts, str)
        many = [prompts] if one else _members("prompts", "a text", prompts, str)
        options = replace(self.options, **changes)
        makers = [
            (text, partial(plain_prompt, self.texts, k, text, options.max_new_tokens))
            for k, text in enumerate(many)
        ]
        return self._answers(one, makers, options, on_text, on_draft, item_ids)

    def chat(
        self,
        chats: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        on_text: OnText | None = None,
        on_draft: OnDraft | None = None,
        item_ids: Sequence[int] | None = None,
        **changes: Any,
    ) -> Any:
        """Answer chats: messages with ``role`` and ``content``, in the chat template.

        A chat whose last message is the assistant's is continued in that message.

        Returns:
            Reply: one for one chat, a list for several.

        Raises:
            ValueError: no template, an empty chat, a message that holds the mask token, or
                a chat that does not fit the model.
        """
        held = _members("chats", "a message or a chat", chats, Mapping, list, tuple)
        one = not held or isinstance(held[0], Mapping)
        many = [
            _members(f"chats[{k}]", "a dictionary with role and content", chat, Mapping)
            for k, chat in enumerate([held] if one else held)
        ]
        options = replace(self.options, **changes)
        makers = [
            (
                str(chat[-1].get("content", "")) if chat else "",
                partial(chat_prompt, self.texts, k, chat, options.max_new_tokens),
            )
            for k, chat in enumerate(many)
        ]
        return self._answers(one, makers, options, on_text, on_draft, item_ids)

    def infill(
        self,
        gapped: Parts | Sequence[Parts],
        *,
        on_draft: OnDraft | None = None,
        item_ids: Sequence[int] | None = None,
        **changes: Any,
    ) -> Any:
        """Fill the gaps of texts; the tokens that end an answer are not written into them.

        Args:
            gapped: a text with mask tokens in it, or its pieces with gaps as numbers:
                ``["def ", 4, "(x):", 12]``. Or a list of such.

        Returns:
            Reply: one for one text, a list for several; ``gaps`` holds each gap's text.

        Raises:
            ValueError: a text without a gap, or that does not fit the model; ``stop`` or
                ``max_new_tokens`` given.
        """
        one = isinstance(gapped, str)
        many: list[Any] = [gapped]
        if not one:
            kind = "a text, a length or a list of them"
            held = _members("gapped", kind, gapped, str, int, list, tuple)
            one = any(isinstance(part, int) for part in held)
            many = [held] if one else held
        options = replace(self.options, **changes)
        if options.stop:
            raise ValueError(f"stop has no meaning where gaps are filled, got {options.stop}")
        if "max_new_tokens" in changes:
            raise ValueError(
                "max_new_tokens has no meaning where gaps are filled, "
                f"got {options.max_new_tokens}: a gap has a length of its own"
            )
        makers = [
            (
                text if isinstance(text, str) else "".join(map(str, text)),
                partial(gapped_prompt, self.texts, k, text),
            )
            for k, text in enumerate(many)
        ]
        return self._answers(one, makers, options, None, on_draft, item_ids)

    def _answers(
        self,
        one: bool,
        makers: Sequence[tuple[str, Callable[[], Prompt]]],
        options: TextOptions,
        on_text: OnText | None,
        on_draft: OnDraft | None,
        item_ids: Sequence[int] | None,
    ) -> Outcome | list[Outcome]:
        if not makers:
            raise ValueError("there must be at least one prompt, got none")
        if item_ids is not None and len(item_ids) != len(makers):
            raise ValueError(f"item_ids must number {len(makers)} prompts, got {len(item_ids)}")
        outcomes: dict[int, Outcome] = {}
        prompts: list[Prompt] = []
        for number, (shown, make) in enumerate(makers):
            try:
                prompt = make()
                self._check_length(prompt)
                prompts.append(prompt)
            except ValueError as error:
                if options.failures == "raise":
                    error.add_note(f"in prompt {number}: {beginning(shown)!r}")
                    raise
                outcomes[number] = Failure(number, beginning(shown), error)
        # Prompts of similar length are decoded together, so that little is padding.
        prompts.sort(key=lambda prompt: (-len(prompt.ids), prompt.number))
        if prompts:
            call = _Call(self, options, prompts, on_text, on_draft)
            keys = [p.number if item_ids is None else item_ids[p.number] for p in prompts]
            outcomes.update({reply.number: reply for reply in call.run(keys)})
        answers = [outcomes[number] for number in range(len(makers))]
        return answers[0] if one else answers

    def _check_length(self, prompt: Prompt) -> None:
        longest = self.model.denoiser.facts.max_length
        if longest is not None and len(prompt.ids) > longest:
            raise ValueError(
                f"the canvas would have {len(prompt.ids)} positions, of which {prompt.start} "
                f"before the text that is asked for; the model takes {longest}: give a shorter "
                "prompt or fewer max_new_tokens"
            )


def _members(name: str, kind: str, given: Any, *types: type) -> list[Any]:
    """What ``given`` holds.

    Raises:
        TypeError: it is no sequence, or holds something of another type.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a sequence of which each is {kind}, got {given!r}")
    members = list(given)
    for place, member in enumerate(members):
        if not isinstance(member, types):
            raise TypeError(f"{name}[{place}] must be {kind}, got {member!r}")
    return members


@dataclass(frozen=True)
class _Call:
    """One call of the decoding loop for prompts that fit the model."""

    generator: TextGenerator
    options: TextOptions
    prompts: list[Prompt]
    on_text: OnText | None
    on_draft: OnDraft | None

    def run(self, keys: Sequence[int]) -> list[Outcome]:
        options, texts = self.options, self.generator.texts
        denoiser = self.generator.model.denoiser
        ends = frozenset(texts.end_ids(options.eos))
        streams = [self._stream(prompt, ends) for prompt in self.prompts]
        infilling = any(prompt.gaps for prompt in self.prompts)
        arguments = replace(options, stop=()).arguments(texts.tokenizer)
        if infilling:
            arguments["suppress"] = [*arguments["suppress"], *ends]
        elif options.early_stop:
            arguments["stop"] = [(token,) for token in sorted(ends)]
            spans = [range(prompt.start, prompt.end) for prompt in self.prompts]
            if options.stop:
                arguments["stop_when"] = stop_rule(spans, until=options.stop, texts=texts)
        told = any(stream is not None for stream in streams) or self.on_draft is not None
        generation = generate(
            denoiser,
            [prompt.canvas(denoiser.device) for prompt in self.prompts],
            **arguments,
            item_ids=keys,
            batch_size=options.batch_size,
            trajectory=options.trajectory,
            on_step=partial(self._tell, streams) if told else None,
            failures=options.failures,
        )
        outcomes: list[Outcome] = []
        for prompt, item, stream in zip(self.prompts, generation.items, streams, strict=True):
            if item.error is not None:
                outcomes.append(Failure(prompt.number, prompt.shown, item.error))
                continue
            reply = self._reply(prompt, item, ends)
            if stream is not None:
                stream.close(reply.text)
            outcomes.append(reply)
        return outcomes

    def _stream(self, prompt: Prompt, ends: frozenset[int]) -> TextStream | None:
        if self.on_text is None:
            return None
        options = self.options
        emit = partial(self.on_text, prompt.number)
        return TextStream(
            self.generator.texts, options.stop, ends, options.skip_special_tokens, emit
        )

    def _tell(self, streams: Sequence[TextStream | None], index: int, item: Item) -> None:
        prompt, stream = self.prompts[index], streams[index]
        if stream is not None and item.final > prompt.start:
            stream.update(item.ids[prompt.start : min(item.final, prompt.end)].tolist())
        if self.on_draft is not None:
            ids = tuple(item.ids.tolist())
            texts = self.generator.texts
            draft = Draft(
                prompt.number,
                ids,
                texts.decode(ids),
                ids.count(texts.mask_id),
                item.account.steps,
            )
            self.on_draft(prompt.number, draft)

    def _reply(self, prompt: Prompt, item: Item, ends: frozenset[int]) -> Reply:
        texts, options = self.generator.texts, self.options
        stop = prompt.end if item.end is None else min(item.end, prompt.end)
        ids = item.ids.tolist()
        if prompt.gaps:
            gaps = [ids[gap.start : gap.stop] for gap in prompt.gaps]
            return Reply(
                prompt.number,
                texts.answer(ids[prompt.start : stop], (), options.skip_special_tokens),
                tuple(token for gap in gaps for token in gap),
                tuple(texts.answer(gap, (), options.skip_special_tokens) for gap in gaps),
                "length",
                item,
            )
        written = ids[prompt.start : stop]
        length, finish = self._length(written, ends)
        written = written[:length]
        # An end that is no special token of the tokenizer would otherwise be shown.
        shown = written[:-1] if finish == "end" and options.skip_special_tokens else written
        text = texts.answer(shown, options.stop, options.skip_special_tokens)
        return Reply(prompt.number, text, tuple(written), (), finish, item)

    def _length(self, ids: list[int], ends: frozenset[int]) -> tuple[int, Finish]:
        """How many ids belong to the answer, and what ends it."""
        end = next((k for k, token in enumerate(ids) if token in ends), None)
        stop = self.generator.texts.stop_in(ids[:end], self.options.stop)
        if stop is not None:
            return stop, "stop"
        return (len(ids), "length") if end is None else (end + 1, "end")
