"""Accuracy at equal cost: each sampler's curve read off at given costs.

Between two of its settings a sampler's accuracy is interpolated linearly in the mean cost per
item. That is what a mixture attains which decodes each item at random with the one or the
other setting, so a reading is a promise that can be kept, not a guess. Beyond its dearest
setting a curve keeps that setting's accuracy (more cost is allowed than it spends); below its
cheapest it has no reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boe.evaluate.bootstrap import percentile_interval, resampling_weights
from boe.evaluate.outcomes import Outcome


@dataclass(frozen=True)
class Curve:
    """Points of operation of what counts as one sampler.

    Attributes:
        name: the sampler, and what is fixed besides the budget.
    """

    name: str
    points: tuple[Outcome, ...]


@dataclass(frozen=True)
class Reading:
    """A curve read off at one cost; intervals are bootstrap percentiles over items, 95 %.

    Attributes:
        curve: its name.
        kind: "interpolated"; "dearest" where it costs less at all its settings; "none" where
            it costs more, and all numbers are ``None``.
        difference: to the reference curve at the same cost.
    """

    curve: str
    kind: str
    accuracy: float | None
    interval: tuple[float, float] | None
    difference: float | None
    difference_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Level:
    """All curves at one cost.

    Attributes:
        axis: which cost, per item.
        cost: how much of it.
        origin: whose cost this is, in words.
        items: how many items all curves have in common.
    """

    axis: str
    cost: float
    origin: str
    reference: str
    items: int
    readings: tuple[Reading, ...]


def equal_cost(
    curves: Sequence[Curve], reference: str, axis: str, costs: Sequence[float] | None = None
) -> list[Level]:
    """Readings of every curve at some costs.

    Args:
        reference: name of the curve that differences are taken to.
        axis: the cost that is to be equal, such as ``flop_equiv`` or ``seconds``.
        costs: by default those of the reference's own settings, from the cheapest.

    Raises:
        ValueError: no curve of that name, or a cost that is not positive.
    """
    named = {curve.name: curve for curve in curves}
    if reference not in named:
        raise ValueError(f"reference must be one of {', '.join(named)}, got {reference!r}")
    shared = shared_items(curves)
    if not shared:
        return []
    weights = resampling_weights(len(shared))
    tables = {name: costs_and_answers(curve, shared, axis) for name, curve in named.items()}
    wanted: list[tuple[float, str]]
    if costs is None:
        points = sorted(named[reference].points, key=lambda point: point.mean(axis, shared))
        wanted = [(point.mean(axis, shared), f"{reference} at {point.setting}") for point in points]
    else:
        wanted = [(cost, "as asked for") for cost in costs]
        if any(cost <= 0 for cost in costs):
            raise ValueError(f"costs must be positive, got {min(costs)}")
    levels = []
    for cost, origin in wanted:
        sampled: dict[str, tuple[str, float, Tensor]] = {}
        for name, (spent, right) in tables.items():
            kind, value = _read_once(spent.mean(dim=1), right.mean(dim=1), cost)
            if kind != "none":
                sampled[name] = (
                    kind,
                    value,
                    read_curves(weights @ spent.T, weights @ right.T, cost),
                )
        levels.append(
            Level(
                axis,
                cost,
                origin,
                reference,
                len(shared),
                tuple(_reading(name, sampled, reference) for name in named),
            )
        )
    return levels


def read_curves(costs: Tensor, accuracies: Tensor, cost: float, rising: bool = False) -> Tensor:
    """Accuracy (R,) at ``cost`` of R curves of K points each, (R, K).

    Points need not be in order. Outside a curve's costs its nearest point counts.

    Args:
        rising: a point counts for as much as any that is cheaper.
    """
    x, order = costs.sort(dim=1, stable=True)
    y = accuracies.gather(1, order)
    if rising:
        y = y.cummax(dim=1).values
    right = torch.searchsorted(x, torch.full_like(x[:, :1], cost))
    high = right.clamp(1, max(1, x.shape[1] - 1)).clamp(max=x.shape[1] - 1)
    low = (high - 1).clamp_min(0)
    x0, x1 = x.gather(1, low), x.gather(1, high)
    y0, y1 = y.gather(1, low), y.gather(1, high)
    share = torch.where(x1 > x0, (cost - x0) / (x1 - x0), 1.0).clamp(0.0, 1.0)
    return (y0 + share * (y1 - y0)).squeeze(1)


def shared_items(curves: Sequence[Curve]) -> list[int]:
    """Items that all points of all curves have, in order."""
    return sorted(
        set.intersection(*(set(point.items) for curve in curves for point in curve.points))
    )


def costs_and_answers(curve: Curve, items: Sequence[int], axis: str) -> tuple[Tensor, Tensor]:
    """Costs and accuracies of a curve's K points, float64 (K, items)."""
    spent = [point.listed(axis, items) for point in curve.points]
    right = [point.listed("accuracy", items) for point in curve.points]
    return torch.tensor(spent, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)


def _read_once(costs: Tensor, accuracies: Tensor, cost: float) -> tuple[str, float]:
    slack = 1e-9 * cost  # a curve's own cost is not below its cheapest for a rounding
    if cost < float(costs.min()) - slack:
        return "none", 0.0
    kind = "dearest" if cost > float(costs.max()) + slack else "interpolated"
    return kind, float(read_curves(costs.unsqueeze(0), accuracies.unsqueeze(0), cost))


def _reading(name: str, sampled: dict[str, tuple[str, float, Tensor]], reference: str) -> Reading:
    if name not in sampled:
        return Reading(name, "none", None, None, None, None)
    kind, value, samples = sampled[name]
    difference = difference_interval = None
    if name != reference and reference in sampled:
        _, base, base_samples = sampled[reference]
        difference = value - base
        difference_interval = percentile_interval(samples - base_samples)
    return Reading(name, kind, value, percentile_interval(samples), difference, difference_interval)
