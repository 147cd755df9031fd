"""Models that predict masked tokens, and their gradients on active rows."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from boe.denoisers.base import (
    ENGINES,
    Denoiser,
    DenoiserFacts,
    EntropyGradient,
    GradientRequest,
    KeysValues,
    Prediction,
    UnsupportedModel,
)

if TYPE_CHECKING:
    from boe.denoisers.dit_denoiser import DiTDenoiser
    from boe.denoisers.intercepted_model import InterceptedDenoiser
    from boe.denoisers.transformers_model import TransformersDenoiser

# Loaded when first used: a denoiser of one's own needs none of them.
_HOMES = {
    "DiTDenoiser": "boe.denoisers.dit_denoiser",
    "InterceptedDenoiser": "boe.denoisers.intercepted_model",
    "TransformersDenoiser": "boe.denoisers.transformers_model",
}

__all__ = [
    "ENGINES",
    "Denoiser",
    "DenoiserFacts",
    "DiTDenoiser",
    "EntropyGradient",
    "GradientRequest",
    "InterceptedDenoiser",
    "KeysValues",
    "Prediction",
    "TransformersDenoiser",
    "UnsupportedModel",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'boe.denoisers' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
