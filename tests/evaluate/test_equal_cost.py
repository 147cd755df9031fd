"""Curves read off at equal cost, and the frontier."""

from __future__ import annotations

import pytest
import torch

from boe.evaluate import Record, Setting
from boe.evaluate.equal_cost import Curve, equal_cost, read_curves
from boe.evaluate.outcomes import outcomes_of
from boe.evaluate.pareto import pareto_frontier


def curve(name: str, points: dict[int, tuple[float, list[int]]]) -> Curve:
    """Points by tokens per step: the cost of each item, and which items are right."""
    records = [
        Record(item, name, Setting(tokens), 0, item in right, "", 1, cost, 0.0, cost, cost / 10)
        for tokens, (cost, right) in points.items()
        for item in range(8)
    ]
    return Curve(name, tuple(outcomes_of(records)))


SLOW = curve("slow", {1: (20.0, [0, 1, 2, 3, 4, 5]), 2: (10.0, [0, 1]), 4: (6.0, [])})
FAST = curve("fast", {1: (8.0, [0, 1, 2, 3]), 2: (4.0, [0, 1])})


def readings(axis: str = "flop_equiv", costs: list[float] | None = None) -> dict:
    return {
        (level.cost, reading.curve): reading
        for level in equal_cost([FAST, SLOW], "fast", axis, costs)
        for reading in level.readings
    }


def test_curves_are_read_at_the_costs_of_the_references_settings() -> None:
    levels = equal_cost([FAST, SLOW], "fast", "flop_equiv")
    assert [(level.cost, level.origin) for level in levels] == [
        (4.0, "fast at 2 per step"),
        (8.0, "fast at 1 per step"),
    ]
    assert {level.items for level in levels} == {8}


def test_between_two_settings_the_accuracy_is_on_the_line() -> None:
    found = readings()
    slow = found[8.0, "slow"]
    assert slow.kind == "interpolated"
    assert slow.accuracy == pytest.approx(0.125), "half way from none to two of eight"
    assert slow.difference == pytest.approx(0.125 - 0.5)
    assert found[8.0, "fast"].accuracy == 0.5
    assert found[8.0, "fast"].difference is None


def test_below_its_cheapest_setting_a_curve_has_no_reading() -> None:
    slow = readings()[4.0, "slow"]
    assert (slow.kind, slow.accuracy, slow.difference) == ("none", None, None)


def test_beyond_its_dearest_setting_a_curve_keeps_its_accuracy() -> None:
    found = readings(costs=[15.0, 50.0])
    assert found[15.0, "fast"].kind == "dearest"
    assert found[15.0, "fast"].accuracy == 0.5
    assert found[15.0, "slow"].accuracy == pytest.approx(0.5)
    assert found[50.0, "slow"].accuracy == 0.75


def test_the_axis_is_a_choice() -> None:
    assert sorted({cost for cost, _ in readings("seconds")}) == pytest.approx([0.4, 0.8])


def test_intervals_are_paired() -> None:
    twin = Curve("twin", FAST.points)
    (level, _) = equal_cost([FAST, twin], "fast", "flop_equiv")
    (own, other) = level.readings
    assert own.interval == other.interval
    assert own.interval[0] < own.interval[1]
    assert other.difference_interval == (0.0, 0.0), "equal answers differ in no resample"


def test_intervals_are_those_of_curves_read_in_every_resample() -> None:
    costs = torch.tensor([[10.0, 2.0, 6.0], [2.0, 6.0, 10.0]], dtype=torch.float64)
    shares = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.4, 0.0]], dtype=torch.float64)
    assert read_curves(costs, shares, 4.0).tolist() == pytest.approx([0.3, 0.3])
    assert read_curves(costs, shares, 9.0).tolist() == pytest.approx([0.8, 0.1])
    assert read_curves(costs, shares, 1.0).tolist() == pytest.approx([0.1, 0.2])
    assert read_curves(costs[:, :1], shares[:, :1], 4.0).tolist() == pytest.approx([0.9, 0.2])


def test_only_items_that_all_have_count() -> None:
    partial = Curve("partial", tuple(outcomes_of([record_of(k) for k in (0, 1, 2)])))
    (level, _) = equal_cost([FAST, partial], "fast", "flop_equiv")
    assert level.items == 3
    nothing = Curve("nothing", tuple(outcomes_of([record_of(99)])))
    assert equal_cost([FAST, nothing], "fast", "flop_equiv") == []


def record_of(item: int) -> Record:
    return Record(item, "partial", Setting(1), 0, True, "", 1, 3.0, 0.0, 3.0, 0.1)


def test_an_unknown_reference_or_cost_is_refused() -> None:
    with pytest.raises(ValueError, match="reference must be one of fast, slow, got 'best'"):
        equal_cost([FAST, SLOW], "best", "flop_equiv")
    with pytest.raises(ValueError, match="costs must be positive"):
        equal_cost([FAST, SLOW], "fast", "flop_equiv", [0.0])


@pytest.mark.parametrize(
    ("points", "frontier"),
    [
        ([(1.0, 0.2), (2.0, 0.5), (3.0, 0.4), (4.0, 0.9)], [0, 1, 3]),
        ([(2.0, 0.5), (1.0, 0.5)], [1]),
        ([(1.0, 0.5), (1.0, 0.7)], [1]),
        ([(1.0, 0.5), (1.0, 0.5)], [0]),
        ([], []),
    ],
)
def test_the_frontier_holds_what_nothing_beats(points, frontier: list[int]) -> None:
    assert pareto_frontier(points) == frontier
