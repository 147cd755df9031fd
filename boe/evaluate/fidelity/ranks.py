"""How well one ranking agrees with another."""

from __future__ import annotations

from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """float64 (N,), from 0; equal values share the mean of their ranks."""
    less = (values.unsqueeze(0) < values.unsqueeze(1)).sum(dim=1)
    equal = (values.unsqueeze(0) == values.unsqueeze(1)).sum(dim=1)
    return less.double() + (equal.double() - 1.0) / 2.0


def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two (N,); 0 where either is constant."""
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = float((a.square().sum() * b.square().sum()).sqrt())
    return float((a * b).sum()) / scale if scale > 0.0 else 0.0


def regret(scores: Tensor, truth: Tensor) -> float:
    """What the pick gives away: (best − picked)/(best − mean) of ``truth`` (N,).

    0 for the best pick, 1 for one that is as bad as a random pick is on average. The pick is
    the first of the largest scores; 0 where the truth is constant.
    """
    best, picked = float(truth.max()), float(truth[int(scores.argmax())])
    spread = best - float(truth.mean())
    return (best - picked) / spread if spread > 0.0 else 0.0
