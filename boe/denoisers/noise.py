"""Noise levels of absorbing diffusion, for models that take the time as an input.

At total noise σ a token is masked with probability 1 − e^{−σ}. A canvas is given the σ at
which the expected share of masks is its own share, which does not depend on the schedule
but for the range that the model was trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseRange:
    """The least and the largest total noise σ that a model has seen."""

    least: float
    most: float

    def __post_init__(self) -> None:
        if not (0.0 <= self.least < self.most and math.isfinite(self.most)):
            raise ValueError(
                f"noise must satisfy 0 <= least < most < inf, got {self.least} and {self.most}"
            )

    @classmethod
    def log_linear(cls, eps: float = 1e-3) -> NoiseRange:
        """σ(t) = −ln(1 − (1 − ε)t), t in [0, 1] (SEDD and MDLM, ``noise_lib.py``)."""
        if not 0.0 < eps < 1.0:
            raise ValueError(f"eps must be in (0, 1), got {eps}")
        return cls(0.0, -math.log(eps))

    @classmethod
    def geometric(cls, sigma_min: float, sigma_max: float) -> NoiseRange:
        """σ(t) = σ_min^{1−t}·σ_max^t (SEDD)."""
        return cls(float(sigma_min), float(sigma_max))

    def sigma_at(self, masked: Tensor, lengths: Tensor) -> Tensor:
        """σ (B,) float32 of canvases with ``masked`` masks among ``lengths`` positions."""
        share = masked.to(torch.float64) / lengths
        return (-torch.log1p(-share)).clamp(self.least, self.most).to(torch.float32)
