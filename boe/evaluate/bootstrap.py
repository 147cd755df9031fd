"""Percentile bootstrap over items: intervals for means, differences and readings of curves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

RESAMPLES = 2000


@lru_cache(maxsize=8)
def resampling_weights(items: int, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """float64 (resamples, items): how often each item is drawn, over the number of items.

    The same arguments give the same weights (the same tensor: do not write to it), so that
    everything that is read off one set of items is resampled together (paired).
    """
    if items < 1:
        raise ValueError(f"items must be at least 1, got {items}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(items, (resamples, items), generator=generator)
    weights = torch.zeros(resamples, items, dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return weights / items


def percentile_interval(samples: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The central ``level`` of ``samples`` (R,)."""
    tail = (1.0 - level) / 2.0
    low, high = torch.quantile(samples, torch.tensor([tail, 1.0 - tail], dtype=samples.dtype))
    return float(low), float(high)


def mean_interval(
    values: Sequence[float], weights: Tensor, level: float = 0.95
) -> tuple[float, float]:
    """Interval for the mean of per-item ``values``, from :func:`resampling_weights`."""
    means = weights @ torch.tensor(values, dtype=torch.float64)
    return percentile_interval(means, level)
