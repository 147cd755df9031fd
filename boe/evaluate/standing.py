"""How one sampler stands against the best of the others at its own costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boe.evaluate.bootstrap import percentile_interval, resampling_weights
from boe.evaluate.equal_cost import Curve, costs_and_answers, read_curves, shared_items
from boe.evaluate.settings import Setting

_EQUAL = 1e-9
"""Shares of right answers nearer to each other than this are the same."""


@dataclass(frozen=True)
class Best:
    """The best that rivals have for no more than some cost.

    Attributes:
        names: the curves that share the most right answers.
        accuracy: theirs.
        ahead: how much more the sampler has, with a 95 % interval: paired bootstrap over
            items, of the first of the names. The rival was picked by the items that it is
            judged on, so it looks better than it is.
    """

    names: tuple[str, ...]
    accuracy: float
    ahead: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Standing:
    """A sampler at one setting.

    Attributes:
        costs: what it spends per item, by axis.
        best: by axis; ``None`` where no rival can be had for so little.
    """

    sampler: str
    setting: Setting
    accuracy: float
    costs: Mapping[str, float]
    best: Mapping[str, Best | None]


def standings(
    curves: Sequence[Curve], reference: str, rivals: Collection[str], axes: Sequence[str]
) -> list[Standing]:
    """Every point of the curve ``reference``, from the dearest, against the ``rivals``.

    A rival is read off at the point's cost as by :func:`boe.evaluate.equal_cost.equal_cost`,
    but has what it can have for less, too: its most right answers up to there.
    """
    shared = shared_items(curves)
    if not shared:
        return []
    weights = resampling_weights(len(shared))
    own = next(curve for curve in curves if curve.name == reference)
    others = [curve for curve in curves if curve.name in rivals and curve.name != reference]
    found = []
    for point in own.points:
        right = torch.tensor(point.listed("accuracy", shared), dtype=torch.float64)
        costs = {axis: point.mean(axis, shared) for axis in axes}
        best = {
            axis: _best(others, shared, axis, cost, right, weights) for axis, cost in costs.items()
        }
        found.append(Standing(point.sampler, point.setting, float(right.mean()), costs, best))
    return sorted(found, key=lambda standing: -standing.costs[axes[0]])


def _best(
    curves: Sequence[Curve],
    items: Sequence[int],
    axis: str,
    cost: float,
    right: Tensor,
    weights: Tensor,
) -> Best | None:
    """The best of ``curves`` at ``cost``, against the sampler that was ``right`` (items,)."""
    offers = []
    for curve in curves:
        spent, answers = costs_and_answers(curve, items, axis)
        if float(spent.mean(dim=1).min()) > cost * (1.0 + _EQUAL):
            continue
        reading = read_curves(
            spent.mean(dim=1).unsqueeze(0), answers.mean(dim=1).unsqueeze(0), cost, rising=True
        )
        offers.append((float(reading), curve.name, spent, answers))
    if not offers:
        return None
    most = max(accuracy for accuracy, *_ in offers)
    tied = [offer for offer in offers if most - offer[0] < _EQUAL]
    _, _, spent, answers = tied[0]
    sampled = read_curves(weights @ spent.T, weights @ answers.T, cost, rising=True)
    low, high = percentile_interval(weights @ right - sampled)
    names = tuple(name for _, name, *_ in tied)
    return Best(names, most, _clean(float(right.mean()) - most), (_clean(low), _clean(high)))


def _clean(difference: float) -> float:
    """A difference without the rounding of what is equal."""
    return 0.0 if abs(difference) < _EQUAL else difference
