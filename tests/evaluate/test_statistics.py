"""Intervals and paired tests against published or enumerated values."""

from __future__ import annotations

import math
from itertools import product

import pytest

from boe.evaluate.statistics import mcnemar_p_value, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
    ],
)
def test_wilson_intervals_are_those_of_newcombe_1998(successes, trials, low, high) -> None:
    ours = wilson_interval(successes, trials)
    assert ours == pytest.approx((low, high), abs=1e-4)


def test_a_wilson_bound_is_where_the_score_test_just_rejects() -> None:
    for bound in wilson_interval(7, 30, level=0.9):
        z = abs(7 / 30 - bound) / math.sqrt(bound * (1 - bound) / 30)
        assert z == pytest.approx(1.644854, abs=1e-5)


def test_no_trials_is_refused() -> None:
    with pytest.raises(ValueError, match="trials must be at least 1, got 0"):
        wilson_interval(0, 0)


@pytest.mark.parametrize(("first", "second"), [(0, 3), (1, 5), (2, 2), (4, 1), (6, 0)])
def test_mcnemar_is_the_share_of_coin_flips_at_least_as_lopsided(first: int, second: int) -> None:
    n = first + second
    flips = [sum(flip) for flip in product((0, 1), repeat=n)]
    extreme = abs(first - n / 2)
    expected = sum(abs(k - n / 2) >= extreme for k in flips) / 2**n
    assert mcnemar_p_value(first, second) == pytest.approx(expected)


def test_mcnemar_without_disagreement_is_1_and_symmetric() -> None:
    assert mcnemar_p_value(0, 0) == 1.0
    assert mcnemar_p_value(3, 11) == mcnemar_p_value(11, 3) < 0.1
    assert mcnemar_p_value(5, 5) == 1.0
