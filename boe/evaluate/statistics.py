"""Intervals and paired tests for proportions, from the standard library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean


def wilson_interval(successes: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion.

    Numbers need not be whole: fewer *effective* trials stand for correlated ones
    (:func:`clustered_interval`).

    Raises:
        ValueError: fewer than one trial.
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    rate = successes / trials
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials**2)) / scale
    # Where all or none succeed a bound is the rate itself, which rounding would miss.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return min(low, rate), max(high, rate)


def clustered_interval(
    shares: Sequence[float], repeats: int, level: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval for the mean of per-item shares of right answers.

    Several draws for one item resemble each other, so they count for less than as many
    items: the effective number of trials is the binomial variance over the variance of the
    mean share, at least the number of items and at most all trials.

    Args:
        shares: of each item's ``repeats`` answers, how many were right, in [0, 1].
    """
    if not shares:
        raise ValueError("shares must hold at least one item, got none")
    items, rate = len(shares), fmean(shares)
    trials = float(items)
    if repeats > 1 and items > 1 and 0.0 < rate < 1.0:
        variance = sum((share - rate) ** 2 for share in shares) / (items - 1) / items
        binomial = rate * (1 - rate)
        trials = items * repeats if variance == 0.0 else binomial / variance
        trials = min(max(trials, float(items)), float(items * repeats))
    return wilson_interval(rate * trials, trials, level)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test on the items that exactly one of two samplers solved."""
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def sign_flip_p_value(differences: Sequence[int]) -> float:
    """Exact two-sided paired test: how often random signs give as large a sum.

    Under the null hypothesis each item's difference is as likely to have the other sign. With
    one answer per item and sampler the differences are −1, 0 or 1, and this is McNemar's exact
    test; with several, ``differences`` are of the numbers of right answers per item.
    """
    sizes = [abs(difference) for difference in differences if difference]
    observed = abs(sum(differences))
    # ways[s]: how many choices of signs give the sum s − sum(sizes).
    ways = [1]
    for size in sizes:
        longer = [0] * (len(ways) + 2 * size)
        for place, count in enumerate(ways):
            longer[place] += count
            longer[place + 2 * size] += count
        ways = longer
    middle = sum(sizes)
    extreme = sum(
        count for place, count in enumerate(ways) if count and abs(place - middle) >= observed
    )
    return extreme / 2 ** len(sizes)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: p-values that control the family-wise error rate."""
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = largest
    return adjusted
