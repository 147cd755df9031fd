"""Decoding options of whoever is given texts: the ``boe`` command, ``TextGenerator``, sharded
generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from boe import defaults
from boe.arguments import check_number, check_whole
from boe.samplers import Policy, Strategy, strategy_from
from boe.samplers.budgets import Budget, FrontLoaded, TokensPerStep
from boe.samplers.caching import KVCacheName


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
        strategy.writing(self.temperature, self.top_p)
        check_number("guidance", self.guidance)
        if not 0.0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be finite and not negative, got {self.guidance}")
        for name in ("stop", "suppress", "delay"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise TypeError(f"{name} must be a tuple of texts, got one text")
            if not isinstance(given, Sequence) or not all(isinstance(t, str) for t in given):
                raise TypeError(f"{name} must be a tuple of texts, got {given!r}")
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
