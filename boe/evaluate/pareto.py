"""Which points no other beats."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, accuracy) points on the frontier, from the cheapest.

    A point is on it if no other is at most as dear and more accurate, or cheaper and at least
    as accurate. Of equal points the first counts.
    """
    order = sorted(range(len(points)), key=lambda k: (points[k][0], -points[k][1]))
    frontier: list[int] = []
    for k in order:
        if not frontier or points[k][1] > points[frontier[-1]][1]:
            frontier.append(k)
    return frontier
