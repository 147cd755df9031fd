"""The bootstrap: weights, and intervals that can be found in other ways."""

from __future__ import annotations

import math

import pytest
import torch

from boe.evaluate.bootstrap import mean_interval, percentile_interval, resampling_weights


def test_every_resample_draws_as_many_items_as_there_are() -> None:
    weights = resampling_weights(7, resamples=50)
    assert weights.shape == (50, 7)
    assert torch.allclose(weights.sum(dim=1), torch.ones(50, dtype=torch.float64))
    counts = weights * 7
    assert torch.equal(counts, counts.round())


def test_the_same_arguments_resample_alike_and_another_seed_does_not() -> None:
    assert torch.equal(resampling_weights(9, 20, seed=1), resampling_weights(9, 20, seed=1))
    assert not torch.equal(resampling_weights(9, 20, seed=1), resampling_weights(9, 20, seed=2))


def test_the_interval_of_a_share_is_about_the_normal_one() -> None:
    values = [1.0] * 120 + [0.0] * 80
    low, high = mean_interval(values, resampling_weights(200))
    half = 1.96 * math.sqrt(0.6 * 0.4 / 200)
    # Percentiles of 2000 resamples scatter by a tenth of the interval's half width.
    assert low == pytest.approx(0.6 - half, abs=half / 5)
    assert high == pytest.approx(0.6 + half, abs=half / 5)


def test_a_constant_has_no_spread() -> None:
    low, high = mean_interval([2.5] * 6, resampling_weights(6))
    assert low == pytest.approx(2.5)
    assert high == pytest.approx(2.5)


def test_percentiles_leave_out_equal_tails() -> None:
    samples = torch.arange(101, dtype=torch.float64)
    assert percentile_interval(samples, level=0.9) == pytest.approx((5.0, 95.0))


def test_no_items_is_refused() -> None:
    with pytest.raises(ValueError, match="items must be at least 1, got 0"):
        resampling_weights(0)
