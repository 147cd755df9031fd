"""What is written: the argmax, or tokens drawn at a temperature from a nucleus."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from boe.denoisers.base import Prediction
from boe.samplers.step import gumbel_of
from boe_kernels import EntropyStats


@dataclass(frozen=True)
class Tokens:
    """How tokens are drawn.

    Attributes:
        temperature: 0 writes the most probable token; above, tokens are drawn from
            softmax(z / temperature) by float64 Gumbel noise. ``None``: the policy's own.
        top_p: draw from the nucleus (Holtzman et al., 2020): the most probable tokens
            whose inclusive cumulative probability is at most this, and always the first.
            ReMDM uses 0.9 in all its text runs.
    """

    temperature: float | None = None
    top_p: float = 1.0

    name: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


def check_temperature(temperature: float | None) -> None:
    if temperature is not None and not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be finite and not negative, got {temperature}")


@dataclass(frozen=True)
class Proposal:
    """A token per slot; all (B, P).

    Attributes:
        tokens: int64.
        probability: at temperature 1, in the whole vocabulary.
        drawn: in the distribution that it was drawn from.
        noised: float64 log-probability under the Gumbel-noised logits, if asked for.
    """

    tokens: Tensor
    probability: Tensor
    drawn: Tensor
    noised: Tensor | None


def propose(
    prediction: Prediction,
    stats: EntropyStats,
    tokens: Tokens,
    generators: Iterable[torch.Generator],
    noised: bool = False,
) -> Proposal:
    """The token that would be written at each slot. ``tokens`` names a temperature."""
    temperature, logits = tokens.temperature or 0.0, prediction.logits
    if temperature == 0.0:
        log_p = None
        if noised:
            z = logits.double()
            log_p = z.amax(dim=-1) - z.logsumexp(dim=-1)
        return Proposal(stats.argmax, stats.top1, stats.top1, log_p)
    proposal = stats.argmax.clone()
    truncated = temperature != 1.0 or tokens.top_p < 1.0
    drawn = torch.zeros_like(stats.top1)
    log_p = torch.zeros_like(stats.top1, dtype=torch.float64) if noised else None
    for row, generator in enumerate(generators):
        count = int((prediction.positions[row] >= 0).sum())
        z = logits[row, :count].double()
        noise = torch.rand(z.shape, generator=generator, dtype=torch.float64, device=z.device)
        z = z / temperature
        if tokens.top_p < 1.0:
            z = _nucleus(z, tokens.top_p)
        noisy = z + gumbel_of(noise)
        proposal[row, :count] = noisy.argmax(dim=-1)
        if truncated:
            chosen = z.gather(-1, proposal[row, :count, None]).squeeze(-1)
            drawn[row, :count] = (chosen - z.logsumexp(dim=-1)).exp().to(drawn.dtype)
        if log_p is not None:
            log_p[row, :count] = noisy.amax(dim=-1) - noisy.logsumexp(dim=-1)
    chosen = logits.gather(-1, proposal.unsqueeze(-1)).squeeze(-1)
    probability = (chosen - stats.logsumexp).exp()
    return Proposal(proposal, probability, drawn if truncated else probability, log_p)


def _nucleus(z: Tensor, top_p: float) -> Tensor:
    """Logits with −inf outside the nucleus."""
    ordered, order = z.sort(dim=-1, descending=True, stable=True)
    outside = ordered.softmax(dim=-1).cumsum(dim=-1) > top_p
    outside[..., 0] = False
    return z.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
