"""Models that predict masked tokens, and their gradients on active rows."""

from boe.denoisers.base import (
    ENGINES,
    Denoiser,
    DenoiserFacts,
    EntropyGradient,
    GradientRequest,
    Prediction,
    UnsupportedModel,
)

__all__ = [
    "ENGINES",
    "Denoiser",
    "DenoiserFacts",
    "EntropyGradient",
    "GradientRequest",
    "Prediction",
    "UnsupportedModel",
]
