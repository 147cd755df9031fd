"""``generate_until``: prompts to canvases, and canvases to answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import cast

import torch
from torch import Tensor

from boe.decoding import Account, Item, generate
from boe.denoisers import Denoiser
from boe.lm_eval.failures import UnusablePrompt
from boe.lm_eval.requests import Asked, Wish
from boe.lm_eval.settings import EvaluationSettings
from boe.samplers.caching import KVCacheName
from boe.text.tokenization import Texts

Announce = Callable[..., None]


@dataclass(frozen=True)
class Prompt:
    """A request as a canvas.

    Attributes:
        canvas: int64 (L,) on the CPU, with the masks to fill in at ``start`` and after.
        start: number of positions before the first mask.
    """

    asked: Asked
    wish: Wish
    canvas: Tensor
    start: int

    @property
    def end(self) -> int:
        return self.start + self.wish.gen_length


@dataclass(frozen=True)
class Answer:
    """An answer's text, and what it took.

    Attributes:
        tokens: number generated, up to and including a stop.
        stopped: whether a stop ended the decode.
        error: what ended it before it was an answer; its text is then empty.
    """

    prompt: Prompt
    text: str
    tokens: int
    stopped: bool
    account: Account
    error: Exception | None = None


class Generator:
    """Decodes prompts by the settings' strategy.

    Args:
        announce: told each batch before it is decoded.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        texts: Texts,
        settings: EvaluationSettings,
        max_length: int | None,
        announce: Announce | None = None,
    ) -> None:
        self.announce = announce
        self.denoiser, self.texts, self.settings = denoiser, texts, settings
        self.max_length = max_length
        self.ends = texts.end_ids(settings.eos)
        self._suppress = tuple(texts.id_of("suppress", token) for token in settings.suppress)
        self._delay = tuple(texts.id_of("delay", token) for token in settings.delay)

    def prepare(self, request: Asked) -> Prompt:
        """The canvas of a request: special tokens, prompt, masks, closing special tokens.

        Raises:
            UnusablePrompt: the prompt is too long, or holds the mask token.
            ValueError: the task asks for what is not supported.
        """
        context, options = request.instance.args
        wish = Wish.of(options, self.settings)
        try:
            ids = self.texts.encode(context)
        except ValueError as error:
            raise UnusablePrompt(f"{request.name}: {error}") from error
        opening, ids = self.texts.opened(ids)
        closing = self.texts.suffix
        masks = [self.texts.mask_id] * wish.gen_length
        if self.max_length is not None:
            room = self.max_length - len(opening) - len(masks) - len(closing)
            if room < 0 or (room < len(ids) and not self.settings.truncate):
                raise UnusablePrompt(
                    f"{request.name}: a prompt of {len(ids)} tokens and {len(masks)} to generate "
                    f"need more than the {self.max_length} positions of the model; give a smaller "
                    "gen_length, or truncate=true to cut the beginning of prompts off"
                )
            ids = ids[max(0, len(ids) - room) :]
        whole = torch.tensor([*opening, *ids, *masks, *closing])
        return Prompt(request, wish, whole, len(opening) + len(ids))

    def run(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """Answers, batch by batch, longest canvases first; failures end theirs."""

        def alike(prompt: Prompt) -> tuple[float, ...]:
            wish = prompt.wish
            nothing = -1.0
            return (
                wish.gen_length,
                nothing if wish.temperature is None else wish.temperature,
                nothing if wish.top_p is None else wish.top_p,
            )

        def order(prompt: Prompt) -> tuple[tuple[float, ...], int, int]:
            return alike(prompt), -len(prompt.canvas), prompt.asked.number

        for _, group in groupby(sorted(prompts, key=order), key=alike):
            waiting = list(group)
            size = self.settings.batch_size
            for start in range(0, len(waiting), size):
                yield from self.decode(waiting[start : start + size])

    def decode(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answers to one batch, those that failed last."""
        if self.announce is not None:
            self.announce("decode", prompts)
        settings, wish = self.settings, prompts[0].wish
        early = settings.early_stop
        stop_texts = any(prompt.wish.until for prompt in prompts)
        # The rest of a batch is kept in any case; what to do about failures is decided above.
        together = settings.strategy.particles is not None
        try:
            items = generate(
                self.denoiser,
                [prompt.canvas.to(self.denoiser.device) for prompt in prompts],
                settings.strategy,
                budget=settings.budget,
                block_length=settings.block_length,
                temperature=wish.temperature,
                top_p=wish.top_p,
                guidance=settings.cfg,
                kv_cache=cast(KVCacheName | None, settings.kv_cache),
                cache_refresh=settings.cache_refresh,
                suppress=self._suppress,
                delay=self._delay,
                stop=[(token,) for token in self.ends] if early else (),
                stop_when=partial(self._stop, prompts) if early and stop_texts else None,
                seed=settings.seed,
                item_ids=[prompt.asked.key for prompt in prompts],
                failures="raise" if together else "keep",
            ).items
        except (ValueError, torch.OutOfMemoryError) as error:
            names = ", ".join(f"{k}: {prompt.asked.name}" for k, prompt in enumerate(prompts))
            error.add_note(f"while decoding the sequences {names}")
            raise
        answers = [self._answer(prompt, item) for prompt, item in zip(prompts, items, strict=True)]
        return sorted(answers, key=lambda answer: answer.error is not None)

    def _stop(self, prompts: Sequence[Prompt], index: int, ids: list[int]) -> int | None:
        """Where the written beginning of a sequence ends with a stop text."""
        prompt = prompts[index]
        written = ids[prompt.start : prompt.end]
        length = self.texts.stop_in(written, prompt.wish.until) if written else None
        return None if length is None else prompt.start + length

    def _answer(self, prompt: Prompt, item: Item) -> Answer:
        if item.error is not None:
            return Answer(prompt, "", 0, False, item.account, item.error)
        stopped = item.end is not None
        end = prompt.end if item.end is None else min(item.end, prompt.end)
        ids = item.ids[prompt.start : end].tolist()
        shown = ids[:-1] if stopped and self._drops(ids[-1]) else ids
        text = self.texts.answer(shown, prompt.wish.until, self.settings.skip_special_tokens)
        return Answer(prompt, text, len(ids), stopped, item.account)

    def _drops(self, token: int) -> bool:
        """Whether an id at the end of an answer is an ending to be left out of it."""
        return self.settings.skip_special_tokens and token in self.ends
