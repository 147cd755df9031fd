"""The gradient along a soft write, averaged over a few points of it.

Theorem 3.1 of the TABES paper expands the probes' entropy F at one end of the way from the
mask e_m to the soft write e_m + Δe; the fall along the whole way is
F(0) − F(1) = −∫₀¹ ⟨g(α), Δe⟩ dα, and a quadrature rule with weights that add up to 1 turns a
few gradients into an estimate of it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from boe.denoisers.base import Denoiser, EntropyGradient, GradientRequest, Prediction

_GAUSS = 0.5 / math.sqrt(3.0)
RULES: dict[str, tuple[tuple[float, float], ...]] = {
    "simpson": ((0.0, 1 / 6), (0.5, 4 / 6), (1.0, 1 / 6)),
    "gauss": ((0.5 - _GAUSS, 0.5), (0.5 + _GAUSS, 0.5)),
}
"""By name, points α of [0, 1] with their weights: both are exact for cubic integrands."""

POINT = "point"
"""The gradient at ``alpha`` alone."""

QUADRATURES = (POINT, *RULES)


def quadrature_gradient(
    denoiser: Denoiser, prediction: Prediction, request: GradientRequest, rule: str
) -> EntropyGradient:
    """The weighted mean of the gradients at the points of ``rule``, and what all of them cost.

    Args:
        request: its ``alpha`` is where the gradient is taken if ``rule`` is "point".
    """
    if rule == POINT:
        return denoiser.entropy_gradient(prediction, request)
    weights = [weight for _, weight in RULES[rule]]
    at_points = [
        denoiser.entropy_gradient(prediction, replace(request, alpha=alpha))
        for alpha, _ in RULES[rule]
    ]

    def mean(name: str) -> Any:
        return sum(w * getattr(g, name) for w, g in zip(weights, at_points, strict=True))

    def total(name: str) -> Any:
        return sum(getattr(gradient, name) for gradient in at_points)

    return EntropyGradient(
        gradient=mean("gradient"),
        delta=at_points[0].delta,
        surrogate=mean("surrogate"),
        forwards=total("forwards"),
        backwards=total("backwards"),
        replayed_rows=total("replayed_rows"),
        backward_rows=total("backward_rows"),
    )
