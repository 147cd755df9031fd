"""The arguments of the model ``boe`` in lm-eval."""

from __future__ import annotations

import math
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

import boe
from boe import defaults
from boe.decoding.setbacks import check_failures
from boe.denoisers.base import Engine
from boe.denoisers.placement import check_compilation
from boe.evaluate.running import describe
from boe.samplers import BoE, FrontLoaded, Strategy, TokensPerStep, strategy_from
from boe.samplers.budgets import Budget
from boe.samplers.tokens import check_temperature, check_top_p

# What cannot change an answer, but for rounding.
_INCIDENTAL = ("batch_size", "device", "costs", "failures", "compile", "tensor_parallel")


@dataclass(frozen=True)
class EvaluationSettings:
    """What ``--model_args`` may hold.

    Attributes:
        pretrained: checkpoint directory, Hub id, or ``embedded:NAME`` for the denoiser that
            comes with the task NAME of :data:`boe.tasks.TASKS`.
        sampler: a specification (:func:`boe.samplers.sampler_from`), in which ``;`` may
            stand for ``,``, since lm-eval takes a comma for the next argument.
        engine: of the gradient, for the sampler ``boe``.
        gen_length: tokens to generate; what the task asks for if ``None``, or else 256.
        steps: decoding steps, shared out as LLaDA does.
        tokens_per_step: instead of ``steps``; 1 if neither is given.
        block_length: semi-autoregressive blocks.
        temperature, top_p: of the draws; if ``None`` what the task asks for where it
            samples, and else the sampler's own.
        cfg: w of classifier-free guidance, in generation and likelihood.
        kv_cache, cache_refresh: keys and values that are kept from step to step, as in
            :func:`boe.generate`.
        suppress: tokens that are never written.
        delay: tokens whose positions are revealed last.
        eos: tokens that end an answer; by default the tokenizer's end of text and of turn.
        early_stop: end a sequence once everything up to and including a stop text or an
            ``eos`` token is written, and count the cost to there. Otherwise the whole
            canvas is decoded, and stop texts only cut the answer.
        skip_special_tokens: leave special tokens out of answers.
        mc_num: draws of the Monte-Carlo bound on a likelihood.
        check_greedy: find out for each likelihood whether greedy decoding would give the
            text, which takes a forward per token; if not, ``is_greedy`` is always False.
        seed: of all draws, with the request's text.
        batch_size: sequences in a forward.
        max_length: longest canvas; the model's own limit if ``None``.
        truncate: cut the beginning off prompts that are too long, instead of refusing them.
        device: cuda if there is one, else cpu.
        dtype: of the weights; ``auto`` is the checkpoint's own.
        revision, mask_id, tokenizer, allow_pickle, trust_remote_code:
            :func:`boe.load_model`.
        costs: folder for the cost records.
        compile: the network: "none", "network", or "graphs" (:class:`boe.CompiledDenoiser`).
        tensor_parallel: processes of torchrun that one model is shared out over. By default
            each has a model of its own, and a share of the requests.
        failures: "raise" ends the run when a request fails; "keep" gives it an empty answer,
            notes the error in its cost record and goes on. Not with particles.
    """

    pretrained: str
    sampler: str = defaults.SAMPLER
    engine: str | None = None
    gen_length: int | None = None
    steps: int | None = None
    tokens_per_step: int | None = None
    block_length: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    cfg: float = 0.0
    kv_cache: str | None = None
    cache_refresh: int | None = None
    suppress: tuple[str, ...] = ()
    delay: tuple[str, ...] = ()
    eos: tuple[str, ...] | None = None
    early_stop: bool = True
    skip_special_tokens: bool = True
    mc_num: int = 128
    check_greedy: bool = True
    seed: int = 0
    batch_size: int = 1
    max_length: int | None = None
    truncate: bool = False
    device: str | None = None
    dtype: str = "auto"
    revision: str | None = None
    mask_id: int | None = None
    tokenizer: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    costs: str | None = None
    compile: str = "none"
    tensor_parallel: int = 1
    failures: str = "raise"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), hints[field.name])
        if not self.pretrained:
            raise ValueError("pretrained must name a checkpoint, got an empty text")
        for name in ("gen_length", "steps", "tokens_per_step", "block_length", "mc_num"):
            _check_positive(name, getattr(self, name))
        for name in ("batch_size", "max_length", "tensor_parallel"):
            _check_positive(name, getattr(self, name))
        if self.steps is not None and self.tokens_per_step is not None:
            raise ValueError("give steps or tokens_per_step, not both")
        if not (self.cfg >= 0.0 and math.isfinite(self.cfg)):
            raise ValueError(f"cfg must be finite and not negative, got {self.cfg}")
        check_temperature(self.temperature)
        check_top_p(self.top_p)
        self.strategy.cached(self.kv_cache, self.cache_refresh)
        check_compilation(self.compile)
        if self.tensor_parallel > 1 and self.compile != "none":
            raise ValueError("compile does not go with tensor_parallel")
        check_failures(self.failures)
        particles = self.strategy.particles
        if self.failures == "keep" and particles is not None:
            raise ValueError("failures='keep' does not go with particles, which share their fate")

    @classmethod
    def from_arguments(cls, **arguments: Any) -> EvaluationSettings:
        """Settings from arguments as lm-eval parses them.

        Raises:
            ValueError, TypeError: an unknown argument, or a value that does not fit.
        """
        if arguments.pop("max_batch_size", None) is not None:
            raise ValueError("max_batch_size is not supported: boe searches for no batch size")
        if "pretrained" not in arguments:
            raise ValueError("model_args must name the checkpoint: pretrained=…")
        known = {field.name for field in fields(cls)}
        for name in arguments:
            if name not in known:
                raise ValueError(_unknown(name, known))
        for name in ("suppress", "delay", "eos"):
            value = arguments.get(name)
            if isinstance(value, str):
                arguments[name] = tuple(part for part in value.split(";") if part)
            elif isinstance(value, Sequence):
                arguments[name] = tuple(value)
        batch_size = arguments.get("batch_size")
        if isinstance(batch_size, str):
            if not batch_size.isdecimal():
                raise ValueError(
                    f"batch_size must be a number, got {batch_size!r}: boe searches for no "
                    "batch size"
                )
            arguments["batch_size"] = int(batch_size)
        for name in ("temperature", "top_p", "cfg"):
            if type(arguments.get(name)) is int:
                arguments[name] = float(arguments[name])
        return cls(**arguments)

    @cached_property
    def strategy(self) -> Strategy:
        """The sampler.

        Raises:
            ValueError: no such sampler, or an engine that it does not take.
        """
        strategy = strategy_from(self.sampler.replace(";", ","))
        strategy = strategy.with_nucleus("reaching")
        if self.engine is None:
            return strategy
        if not isinstance(strategy.which, BoE):
            raise ValueError(
                f"engine is an option of the sampler boe, got engine={self.engine!r} with "
                f"{self.sampler!r}"
            )
        return replace(strategy, which=replace(strategy.which, engine=cast(Engine, self.engine)))

    @property
    def budget(self) -> Budget:
        if self.steps is not None:
            return FrontLoaded(self.steps)
        return TokensPerStep(self.tokens_per_step or 1)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides an answer, but for the request and the model's weights."""
        deciding = {name: value for name, value in asdict(self).items() if name not in _INCIDENTAL}
        # The same arguments may mean something else to another version.
        return deciding | {"boe": boe.__version__, "strategy": describe(self.strategy)}


def _unknown(name: str, known: set[str]) -> str:
    near = get_close_matches(name, known, n=1)
    options = {field.name for field in fields(BoE)}
    if near:
        hint = f"did you mean {near[0]}?"
    elif name in options:
        hint = f"options of a sampler are separated by ';' here: sampler=boe:alpha=0.5;{name}=…"
    else:
        hint = f"known are {', '.join(sorted(known))}"
    return f"unknown model argument {name!r}: {hint}"


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _check_type(name: str, value: Any, hint: Any) -> None:
    accepted = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for kind in accepted:
        if get_origin(kind) is tuple:
            if isinstance(value, tuple) and all(isinstance(part, str) for part in value):
                return
        elif type(value) is kind:
            return
    names = " or ".join(
        "none" if kind is type(None) else "texts" if get_origin(kind) is tuple else kind.__name__
        for kind in accepted
    )
    raise TypeError(f"{name} must be {names}, got {value!r}")
