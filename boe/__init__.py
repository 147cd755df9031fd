"""Backward-on-Entropy steering for masked diffusion language models.

Fill in masked tokens in the order that most lowers the entropy of the rest:
``boe.generate(denoiser, canvas, sampler="boe")``. The kernels behind it are in
``boe_kernels``; ``boe.attention.active_query_attention`` is the one most people want.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boe import (
        attention,
        decoding,
        defaults,
        denoisers,
        evaluate,
        samplers,
        scaling,
        tasks,
        text,
    )
    from boe.canvas import Canvas
    from boe.decoding import Account, Generation, Item, generate
    from boe.denoisers import Denoiser, DiTDenoiser, InterceptedDenoiser, UnsupportedModel
    from boe.denoisers.compiled import CompiledDenoiser
    from boe.denoisers.loading import LoadedModel, load_model
    from boe.denoisers.transformers_model import TransformersDenoiser
    from boe.samplers import (
        BackgroundFrequencies,
        BoE,
        Confidence,
        Cosine,
        Entropy,
        FrontLoaded,
        Margin,
        Random,
        Sampler,
        Strategy,
        Tokens,
        TokensPerStep,
        sampler_from,
        spec_of,
    )
    from boe.text import Draft, Failure, Reply, TextGenerator, TextOptions

__version__ = "0.1.0"

# Loaded when first used: importing torch takes a second that `boe --help` need not pay.
_MODULES = (
    *("attention", "decoding", "defaults", "denoisers", "evaluate", "samplers", "scaling"),
    *("tasks", "text"),
)
_HOMES = {
    "Canvas": "boe.canvas",
    **dict.fromkeys(("Account", "Generation", "Item", "generate"), "boe.decoding"),
    **dict.fromkeys(("Denoiser", "UnsupportedModel"), "boe.denoisers"),
    "CompiledDenoiser": "boe.denoisers.compiled",
    **dict.fromkeys(("LoadedModel", "load_model"), "boe.denoisers.loading"),
    "DiTDenoiser": "boe.denoisers.dit_denoiser",
    "InterceptedDenoiser": "boe.denoisers.intercepted_model",
    "TransformersDenoiser": "boe.denoisers.transformers_model",
    **dict.fromkeys(
        (
            "BackgroundFrequencies",
            "BoE",
            "Confidence",
            "Cosine",
            "Entropy",
            "FrontLoaded",
            "Margin",
            "Random",
            "Sampler",
            "Strategy",
            "Tokens",
            "TokensPerStep",
            "sampler_from",
            "spec_of",
        ),
        "boe.samplers",
    ),
    **dict.fromkeys(("Draft", "Failure", "Reply", "TextGenerator", "TextOptions"), "boe.text"),
}

__all__ = [
    "Account",
    "BackgroundFrequencies",
    "BoE",
    "Canvas",
    "CompiledDenoiser",
    "Confidence",
    "Cosine",
    "Denoiser",
    "DiTDenoiser",
    "Draft",
    "Entropy",
    "Failure",
    "FrontLoaded",
    "Generation",
    "InterceptedDenoiser",
    "Item",
    "LoadedModel",
    "Margin",
    "Random",
    "Reply",
    "Sampler",
    "Strategy",
    "TextGenerator",
    "TextOptions",
    "Tokens",
    "TokensPerStep",
    "TransformersDenoiser",
    "UnsupportedModel",
    "attention",
    "decoding",
    "defaults",
    "denoisers",
    "evaluate",
    "generate",
    "load_model",
    "sampler_from",
    "samplers",
    "scaling",
    "spec_of",
    "tasks",
    "text",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"boe.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'boe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
