"""From texts to what the decoding loop takes: prompts, conversations, decoding options.

Shared by whoever is given texts: the ``boe`` command and sharded generation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boe import defaults
from boe.arguments import check_number, check_whole
from boe.samplers import Policy, Strategy, strategy_from
from boe.samplers.budgets import Budget, FrontLoaded, TokensPerStep
from boe.samplers.caching import KVCacheName

if TYPE_CHECKING:
    from boe.denoisers.loading import LoadedModel


@dataclass(frozen=True)
class DecodingOptions:
    """How prompts are decoded; texts of ``stop``, ``suppress`` and ``delay`` are tokenised.

    Attributes:
        sampler: a policy, a strategy, or its specification (:func:`boe.samplers.sampler_from`).
        steps: decoding steps; one token per step if ``None``.
        block_length, temperature, top_p, guidance, kv_cache, cache_refresh, seed: as in
            :func:`boe.generate`.
        stop: texts that end a sequence once it is written up to them.
        suppress, delay: texts of one token each, never written or revealed last.

    Raises:
        ValueError: a sampler that cannot be read, a number outside its range, or an empty stop
            text.
        TypeError: one text where there may be several.
    """

    sampler: str | Policy | Strategy = defaults.SAMPLER
    steps: int | None = None
    block_length: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    guidance: float = 0.0
    kv_cache: KVCacheName | None = None
    cache_refresh: int | None = None
    stop: tuple[str, ...] = ()
    suppress: tuple[str, ...] = ()
    delay: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        strategy = strategy_from(self.sampler)
        for name in ("steps", "block_length"):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value)
        for name in ("temperature", "top_p", "guidance"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        if self.temperature is not None and not 0.0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and not negative, got {self.temperature}")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0.0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be finite and not negative, got {self.guidance}")
        for name in ("stop", "suppress", "delay"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a tuple of texts, got one text")
        if "" in self.stop:
            raise ValueError("stop must hold texts, got an empty one")
        strategy.cached(self.kv_cache, self.cache_refresh)

    @property
    def budget(self) -> Budget:
        return TokensPerStep(1) if self.steps is None else FrontLoaded(self.steps)

    def arguments(self, tokenizer: Any) -> dict[str, Any]:
        """The arguments of :func:`boe.generate` after denoiser and canvas.

        Raises:
            ValueError: a text that is no token, or not one, to this tokenizer.
        """
        return {
            "sampler": self.sampler,
            "budget": self.budget,
            "block_length": self.block_length,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "guidance": self.guidance,
            "kv_cache": self.kv_cache,
            "cache_refresh": self.cache_refresh,
            "stop": [_ids_of(tokenizer, "stop", text) for text in self.stop],
            "suppress": [_id_of(tokenizer, "suppress", text) for text in self.suppress],
            "delay": [_id_of(tokenizer, "delay", text) for text in self.delay],
            "seed": self.seed,
        }


def prompt_ids(loaded: LoadedModel, prompt: str, length: int) -> tuple[Tensor, range]:
    """Ids of a prompt with ``length`` masks after it, int64 (L,); and where these masks are.

    Raises:
        ValueError: there is nothing to fill in.
    """
    tokenizer, mask_id = loaded.tokenizer, loaded.denoiser.facts.mask_id
    ids: Tensor = tokenizer(prompt, return_tensors="pt").input_ids[0]
    # Appended masks belong before a closing special token such as [SEP].
    closing = len(ids) and int(ids[-1]) in set(tokenizer.all_special_ids) - {mask_id}
    cut = len(ids) - 1 if closing else len(ids)
    ids = torch.cat([ids[:cut], torch.full((length,), mask_id), ids[cut:]])
    if not bool((ids == mask_id).any()):
        raise ValueError(
            f"the prompt holds no {tokenizer.mask_token or f'mask (id {mask_id})'} and length is "
            "0: nothing to fill in"
        )
    return ids, range(cut, cut + length)


def _ids_of(tokenizer: Any, option: str, text: str) -> list[int]:
    """The ids of a text without special tokens around it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"{option} {text!r} is no text to this tokenizer")
    unknown = tokenizer.unk_token_id
    if unknown in ids and tokenizer.unk_token not in text:
        raise ValueError(f"{option} {text!r} holds what is no token of this tokenizer")
    return ids


def _id_of(tokenizer: Any, option: str, text: str) -> int:
    """The id of a text that is one token."""
    ids = _ids_of(tokenizer, option, text)
    if len(ids) > 1:
        raise ValueError(f"{option} {text!r} must be one token, it is {len(ids)}")
    return ids[0]
