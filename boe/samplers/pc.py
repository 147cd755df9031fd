"""PC-Sampler: confidence in uncommon tokens, from left to right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from boe.arguments import check_numbers
from boe.samplers.base import Sampler, Scores, Step
from boe.samplers.frequencies import BackgroundFrequencies

UNIFORM = "uniform"
FORMS = ("exponential", "linear")


@dataclass(frozen=True)
class PCSampler(Sampler):
    """PC-Sampler (Huang et al., 2025): position-aware, calibrated confidence.

    c_i = min(−p_i·ln(f(x̂_i) + 10⁻⁹), ``clip``) with p_i the probability of the proposed token
    x̂_i and f its frequency in ordinary text. The score is exp(−``decay``·d_i)·c_i with d_i
    the distance from the start of the block ("exponential"), or
    (1 − ``decay``)·minmax(c_i) + ``decay``·(L − d_i)/L over a block of L ("linear").

    Attributes:
        frequencies: a file that :meth:`BackgroundFrequencies.save` wrote, or the object;
            "uniform" for no calibration: −ln f is then 1, and the score confidence that
            fades with distance.
        decay: λ. The authors use 0.25, on Sudoku 0 and on Countdown 0.5 or 1.
        clip: α, nats.
        form: "exponential" or "linear".
    """

    frequencies: str | BackgroundFrequencies = ""
    decay: float = 0.25
    clip: float = 10.0
    form: str = "exponential"

    name: ClassVar[str] = "pc"

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.frequencies == "":
            raise ValueError(
                "frequencies must name a file made by BackgroundFrequencies.save, or be "
                "'uniform' to do without"
            )
        if isinstance(self.frequencies, str) and self.frequencies != UNIFORM:
            _load(self.frequencies)
        if not (self.decay >= 0.0 and math.isfinite(self.decay)):
            raise ValueError(f"decay must be finite and not negative, got {self.decay}")
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        if self.form == "linear" and self.decay > 1.0:
            raise ValueError(f"decay must be in [0, 1] with form='linear', got {self.decay}")
        if not self.clip > 0.0:
            raise ValueError(f"clip must be above 0, got {self.clip}")

    def score(self, step: Step) -> Scores:
        rarity = self._rarity(step)
        calibrated = (step.proposal_probability.double() * rarity).clamp_max(self.clip)
        distance = (step.positions - step.of_rows(lambda clock: clock.start)).clamp_min(0.0)
        parts = {"rarity": rarity, "calibrated": calibrated}
        if self.form == "exponential":
            return Scores((-self.decay * distance).exp() * calibrated, parts)
        low = calibrated.masked_fill(~step.eligible, torch.inf).amin(dim=1, keepdim=True)
        high = calibrated.masked_fill(~step.eligible, -torch.inf).amax(dim=1, keepdim=True)
        confidence = (calibrated - low) / (high - low).clamp_min(1e-9)
        length = step.of_rows(lambda clock: clock.end - clock.start)
        place = (length - distance) / length
        return Scores((1.0 - self.decay) * confidence + self.decay * place, parts)

    def _rarity(self, step: Step) -> Tensor:
        """−ln of the proposed tokens' frequencies, float64 (B, P)."""
        vocabulary = step.denoiser.facts.vocab_size
        if self.frequencies == UNIFORM:
            # ln V would do as well, but for the clip: beyond e^α tokens it would cut off the
            # confidence itself.
            return torch.ones_like(step.stats.entropy, dtype=torch.float64)
        background = self.frequencies
        if isinstance(background, str):
            background = _load(background)
        if background.vocab_size != vocabulary:
            raise ValueError(
                f"frequencies are of {background.vocab_size} tokens; the model has {vocabulary}"
            )
        frequency = background.frequency().to(step.positions.device)
        return -(frequency[step.proposal] + 1e-9).log()


def _load(path: str) -> BackgroundFrequencies:
    return _read(path, Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: str, changed: int) -> BackgroundFrequencies:
    return BackgroundFrequencies.load(path)
