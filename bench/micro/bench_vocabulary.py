"""The vocabulary ops, soft writes and the scores made of them, on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from bench import entropy
from boe_kernels import (
    entropy_stats,
    frozen_linear,
    inject_soft_embeddings,
    linear_entropy,
    sample_tokens,
    tis_scores,
)

Compete = Callable[..., None]

MODES = ["forward", "forward+backward"]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def entropy_and_gradient(stats: Any, leaf: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The first statistic, and its gradient where one is recorded."""
    if not stats[0].requires_grad:
        return (stats[0],)
    return stats[0].detach(), *torch.autograd.grad(stats[0].sum(), leaf)


@pytest.mark.parametrize("provider", ["ours", "eager", "categorical"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [16, 128])
def bench_entropy_stats(rows: int, mode: str, provider: str, toy: bool, compete: Compete) -> None:
    shape = {"N": rows // 8, "V": 501} if toy else {"N": rows, "V": 50_258}
    logits = (3 * drawn(*shape.values())).requires_grad_(mode != "forward")
    functions = {
        "ours": entropy_stats,
        "eager": entropy.eager,
        "categorical": entropy.categorical,
    }
    calls = {
        name: lambda f=f: entropy_and_gradient(f(logits), logits) for name, f in functions.items()
    }
    compete("entropy_stats", mode, shape, calls, provider)


@pytest.mark.parametrize("provider", ["ours", "eager"])
@pytest.mark.parametrize("mode", MODES)
def bench_linear_entropy(mode: str, provider: str, toy: bool, compete: Compete) -> None:
    shape = {"N": 4, "V": 301, "D": 16} if toy else {"N": 64, "V": 30_522, "D": 256}
    hidden = drawn(shape["N"], shape["D"]).requires_grad_(mode != "forward")
    weight = drawn(shape["V"], shape["D"], seed=1) / shape["D"] ** 0.5
    functions = {
        "ours": linear_entropy,
        "eager": lambda hidden, weight: entropy.eager(linear(hidden, weight)),
    }
    calls = {
        name: lambda f=f: entropy_and_gradient(f(hidden, weight), hidden)
        for name, f in functions.items()
    }
    compete("linear_entropy", mode, shape, calls, provider)


@pytest.mark.parametrize("provider", ["ours", "multinomial", "reference"])
@pytest.mark.parametrize("rows", [16, 64])
def bench_sample_tokens(rows: int, provider: str, toy: bool, compete: Compete) -> None:
    shape = {"N": rows // 8, "V": 501} if toy else {"N": rows, "V": 30_522}
    logits, seeds = 3 * drawn(*shape.values()), torch.arange(shape["N"])

    def draw(backend: str) -> tuple[torch.Tensor, ...]:
        sample = sample_tokens(logits, seeds, backend=backend)
        return sample.stats.entropy, sample.token

    def multinomial() -> tuple[torch.Tensor, ...]:
        # Its tokens are others: they are drawn, not returned.
        torch.multinomial(logits.softmax(dim=-1), 1)
        return (entropy.eager(logits)[0],)

    calls: dict[str, Callable[[], object]] = {
        "ours": partial(draw, "auto"),
        "reference": partial(draw, "reference"),
        "multinomial": multinomial,
    }
    compete("sample_tokens", "forward", shape, calls, provider)


@pytest.mark.parametrize("provider", ["ours", "library"])
@pytest.mark.parametrize("top_k", [None, 64])
def bench_inject_soft_embeddings(
    top_k: int | None, provider: str, toy: bool, compete: Compete
) -> None:
    shape = {"C": 3, "V": 301, "D": 16} if toy else {"C": 64, "V": 30_522, "D": 768}
    count, vocabulary, width = shape.values()
    embeds, table = drawn(1, 4 * count, width), drawn(vocabulary, width, seed=1)
    logits = 3 * drawn(1, count, vocabulary, seed=2)
    rows = torch.arange(0, 4 * count, 4)

    def write(backend: str) -> torch.Tensor:
        return inject_soft_embeddings(
            embeds, rows, logits, table, table[0], 0.5, top_k, is_logits=True, backend=backend
        )

    calls = {"ours": partial(write, "auto"), "library": partial(write, "library")}
    config = shape if top_k is None else {**shape, "k": top_k}
    compete("inject_soft_embeddings", "forward", config, calls, provider)


@pytest.mark.parametrize("provider", ["ours", "torch"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [32, 256])
def bench_frozen_linear(rows: int, mode: str, provider: str, toy: bool, compete: Compete) -> None:
    shape = {"M": rows // 8, "K": 16, "N": 32} if toy else {"M": rows, "K": 768, "N": 3072}
    x = drawn(shape["M"], shape["K"]).requires_grad_(mode != "forward")
    weight = drawn(shape["N"], shape["K"], seed=1)
    upstream = drawn(shape["M"], shape["N"], seed=2)

    def run(function: Callable[..., torch.Tensor]) -> torch.Tensor:
        y = function(x, weight)
        return y if mode == "forward" else torch.autograd.grad(y, x, upstream)[0]

    calls = {"ours": partial(run, frozen_linear), "torch": partial(run, linear)}
    compete("frozen_linear", mode, shape, calls, provider)


@pytest.mark.parametrize("provider", ["ours", "eager", "reference"])
@pytest.mark.parametrize("batch", [1, 8])
def bench_tis_scores(batch: int, provider: str, toy: bool, compete: Compete) -> None:
    shape = {"B": batch, "C": 4, "D": 16} if toy else {"B": batch, "C": 64, "D": 768}
    batch, count, _ = shape.values()
    gradient, delta = drawn(*shape.values()), drawn(*shape.values(), seed=1)
    entropies = 8 * torch.rand(batch, 2 * count, generator=torch.Generator().manual_seed(2))
    candidates, remaining = torch.arange(count).expand(batch, -1), torch.full((batch,), 0.5)

    def score(backend: str) -> torch.Tensor:
        scores = tis_scores(
            gradient,
            delta,
            entropies,
            candidates,
            remaining,
            vocabulary=30_522,
            gate="positive",
            penalty=0.3,
            floor=4.0,
            normalise="zscore",
            backend=backend,
        )
        return scores.score.gather(1, candidates)

    def eager() -> torch.Tensor:
        influence = -(gradient * delta).sum(dim=-1)
        deviation, mean = torch.std_mean(influence, dim=1, correction=0, keepdim=True)
        value, h = (influence - mean) / deviation, entropies.gather(1, candidates)
        gate = (1 - h / math.log(30_522)).clamp(0, 1)
        shortfall = (4.0 * remaining.unsqueeze(1) - h).clamp_min(0)
        return torch.where(value > 0, value * gate, value) - 0.3 * shortfall.square()

    calls: dict[str, Callable[[], object]] = {
        "ours": partial(score, "auto"),
        "reference": partial(score, "reference"),
        "eager": eager,
    }
    compete("tis_scores", "forward", shape, calls, provider)
