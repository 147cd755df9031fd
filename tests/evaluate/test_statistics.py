"""Intervals and paired tests against published or enumerated values."""

from __future__ import annotations

import math
from itertools import product

import pytest

from boe.evaluate.statistics import (
    clustered_interval,
    holm,
    mcnemar_p_value,
    sign_flip_p_value,
    wilson_interval,
)


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


@pytest.mark.parametrize("trials", range(1, 200))
def test_an_interval_holds_its_proportion_and_ends_where_all_or_none_succeed(trials: int) -> None:
    assert wilson_interval(0, trials)[0] == 0.0
    assert wilson_interval(trials, trials)[1] == 1.0
    for successes in range(trials + 1):
        low, high = wilson_interval(successes, trials)
        assert 0.0 <= low <= successes / trials <= high <= 1.0


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


def test_several_draws_of_an_item_count_for_less_than_as_many_items() -> None:
    alike = clustered_interval([0.0, 0.0, 1.0, 1.0] * 5, repeats=4)
    assert alike == wilson_interval(10, 20), "draws that agree are one trial"
    unlike = clustered_interval([0.5] * 20, repeats=4)
    assert unlike == pytest.approx(wilson_interval(40, 80)), "independent ones are trials each"
    between = clustered_interval([0.25, 0.75, 0.0, 1.0] * 5, repeats=4)
    assert unlike[1] < between[1] < alike[1]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_unanimous_answers_have_the_interval_of_as_many_items(share: float) -> None:
    assert clustered_interval([share] * 8, repeats=3) == wilson_interval(8 * share, 8)


def test_one_draw_per_item_gives_wilsons_interval() -> None:
    assert clustered_interval([1.0, 0.0, 0.0, 1.0], repeats=1) == wilson_interval(2, 4)
    with pytest.raises(ValueError, match="at least one item"):
        clustered_interval([], repeats=1)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 3), (1, 5), (4, 4), (9, 2)])
def test_sign_flips_with_one_answer_per_item_are_mcnemars_test(first: int, second: int) -> None:
    differences = [1] * first + [-1] * second + [0] * 7
    assert sign_flip_p_value(differences) == pytest.approx(mcnemar_p_value(first, second))


@pytest.mark.parametrize("differences", [[3, -1, 2], [2, 2, -2, 1], [1, 0, -4, 3, 3]])
def test_sign_flips_are_the_share_of_signs_that_give_as_large_a_sum(differences) -> None:
    sums = [
        sum(sign * d for sign, d in zip(signs, differences, strict=True))
        for signs in product((-1, 1), repeat=len(differences))
    ]
    expected = sum(abs(total) >= abs(sum(differences)) for total in sums) / len(sums)
    assert sign_flip_p_value(differences) == pytest.approx(expected)


def test_holm_multiplies_by_the_hypotheses_left_and_never_falls() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
