"""What is written: the argmax, or tokens drawn at a temperature from a nucleus."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from boe.arguments import check_number, check_numbers
from boe.denoisers.base import Prediction
from boe.samplers.late_options import repr_of
from boe_kernels import EntropyStats, entropy_stats, sample_tokens
from boe_kernels.token_sampling.api import LEAST_TEMPERATURE
from boe_kernels.token_sampling.noise import gumbel_noise

# Odd, so that no two positions share a seed; the op mixes the bits.
_STRIDE = 0x5851F42D4C957F2D
_HALF = 1 << 62


Nucleus = Literal["within", "reaching"]


@dataclass(frozen=True, repr=False)
class Tokens:
    """How tokens are drawn.

    Attributes:
        temperature: 0 writes the most probable token; from 1e-6 on, tokens are drawn from
            softmax(z / temperature) by Gumbel noise of 64 bits
            (:func:`boe_kernels.sample_tokens`). ``None``: the policy's own.
        top_p: draw from the nucleus of this probability only; ReMDM uses 0.9 in all its text
            runs.
        nucleus: "within", as MDLM and ReMDM have it: the most probable tokens whose inclusive
            cumulative probability is at most ``top_p``, and always the first. "reaching": the
            fewest that have at least ``top_p`` together (Holtzman et al., 2020), as in
            transformers and vLLM: one token more. ``None``: "within", but "reaching" where
            ``top_p`` comes from transformers, diffusers or lm-eval.
    """

    temperature: float | None = None
    top_p: float = 1.0
    nucleus: Nucleus | None = None

    name: ClassVar[str] = "tokens"

    def __repr__(self) -> str:
        return repr_of(self, ("nucleus",))

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.nucleus not in (None, *get_args(Nucleus)):
            raise ValueError(
                f"nucleus must be one of {', '.join(get_args(Nucleus))}, got {self.nucleus!r}"
            )
        check_temperature(self.temperature)
        check_top_p(self.top_p)


def check_top_p(top_p: float | None) -> None:
    if top_p is None:
        return
    check_number("top_p", top_p)
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")


def check_temperature(temperature: float | None) -> None:
    if temperature is None:
        return
    check_number("temperature", temperature)
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be finite and not negative, got {temperature}")
    if 0.0 < temperature < LEAST_TEMPERATURE:
        raise ValueError(
            f"temperature must be 0, which writes the most probable token, or at least "
            f"{LEAST_TEMPERATURE:g}, got {temperature}"
        )


@dataclass(frozen=True)
class Proposal:
    """A token per slot; all (B, P).

    Attributes:
        stats: of the logits, untempered and in the whole vocabulary.
        tokens: int64; meaningless where the statistics are NaN.
        probability: at temperature 1, in the whole vocabulary.
        drawn: in the distribution that it was drawn from.
        noised: float64 log-probability under the Gumbel-noised logits, if asked for.
    """

    stats: EntropyStats
    tokens: Tensor
    probability: Tensor
    drawn: Tensor
    noised: Tensor | None


def propose(
    prediction: Prediction,
    tokens: Tokens,
    generators: Iterable[torch.Generator],
    noised: bool = False,
) -> Proposal:
    """The token that would be written at each slot. ``tokens`` names a temperature.

    Logits are read once: a draw gives their statistics too.
    """
    temperature, logits = tokens.temperature or 0.0, prediction.logits
    if temperature == 0.0:
        stats = entropy_stats(logits)
        log_p = None
        if noised:
            z = logits.double()
            log_p = z.amax(dim=-1) - z.logsumexp(dim=-1)
        return Proposal(stats, stats.argmax, stats.top1, stats.top1, log_p)
    truncated = temperature != 1.0 or tokens.top_p < 1.0
    seeds = slot_seeds(prediction.positions, generators)
    allowed = logits
    if tokens.top_p < 1.0:
        # Sequence by sequence: float64 logits of a whole batch may not fit.
        outside = [_outside_nucleus(row.double() / temperature, tokens) for row in logits]
        allowed = logits.masked_fill(torch.stack(outside), -torch.inf)
    proposal, stats = sample_tokens(allowed, seeds, temperature=temperature)
    if allowed is not logits:
        stats = entropy_stats(logits)
    # Of NaN anything may be drawn; whoever reads the statistics finds out.
    proposal = proposal.clamp(0, logits.shape[-1] - 1)
    chosen = logits.gather(-1, proposal.unsqueeze(-1)).squeeze(-1)
    probability = (chosen - stats.logsumexp).exp()
    drawn = probability
    log_p = torch.zeros_like(stats.top1, dtype=torch.float64) if noised else None
    if truncated:
        drawn = torch.empty_like(stats.top1)
        for row, z in enumerate(allowed):
            log_q = _log_probability(z.double() / temperature, proposal[row])
            drawn[row] = log_q.exp().to(drawn.dtype)
    if log_p is not None:
        for row, z in enumerate(allowed):
            noise = gumbel_noise(seeds[row], z.shape[-1])
            log_p[row] = _log_probability(z.double() / temperature + noise, proposal[row])
    return Proposal(stats, proposal, probability, drawn, log_p)


def slot_seeds(positions: Tensor, generators: Iterable[torch.Generator]) -> Tensor:
    """int64 (B, P), the seed of each slot's draw.

    It depends on the sequence's generator and on the position alone, so a token does not
    depend on which other positions are still masked, or on the rest of the batch.
    """
    device = positions.device
    own = [
        torch.randint(-_HALF, _HALF, (), generator=generator, dtype=torch.int64, device=device)
        for generator in generators
    ]
    return torch.stack(own).unsqueeze(1) + (positions + 1) * _STRIDE


def _log_probability(z: Tensor, tokens: Tensor) -> Tensor:
    """ln softmax(z) (P, V) at the given tokens (P,)."""
    return z.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - z.logsumexp(dim=-1)


def _outside_nucleus(z: Tensor, tokens: Tokens) -> Tensor:
    """bool, as ``z`` (P, V): ids outside the nucleus of softmax(z)."""
    ordered, order = z.sort(dim=-1, descending=True, stable=True)
    p = ordered.softmax(dim=-1)
    cumulative = p.cumsum(dim=-1)
    if tokens.nucleus == "reaching":
        outside = cumulative - p >= tokens.top_p
    else:
        outside = cumulative > tokens.top_p
    outside[..., 0] = False
    return torch.zeros_like(outside).scatter(-1, order, outside)
