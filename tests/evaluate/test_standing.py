"""One sampler against the best of its rivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from fake_task import FakeTask
from results_of_fakes import fake_comparison

from boe.evaluate import Comparison, Group, Setting, Study, analyse, run_study
from boe.evaluate.equal_cost import Curve
from boe.evaluate.outcomes import Outcome
from boe.evaluate.standing import Best, Standing, standings
from boe.evaluate.stored import comparison_from_json
from boe.evaluate.tables import standing_table

AXES = ("flop_equiv", "seconds")


def point(name: str, right: Sequence[int], forwards: float, seconds: float = 1.0) -> Outcome:
    """An outcome on as many items as ``right`` tells of."""
    items = range(len(right))
    values = {
        "accuracy": {k: float(right[k]) for k in items},
        "flop_equiv": dict.fromkeys(items, forwards),
        "seconds": dict.fromkeys(items, seconds),
    }
    return Outcome(name, Setting(1), 1, dict(enumerate(right)), values, {})


def stand(ours: Outcome, *rivals: Curve) -> Standing:
    curves = [*rivals, Curve("ours", (ours,))]
    (found,) = standings(curves, "ours", {curve.name for curve in rivals}, AXES)
    return found


def test_between_two_settings_a_rival_is_read_off_and_beyond_them_it_keeps_the_dearest() -> None:
    rival = Curve("r", (point("a", [1, 0, 0, 0], 2.0), point("b", [1, 1, 1, 0], 4.0)))
    for forwards, accuracy in ((2.0, 0.25), (3.0, 0.5), (4.0, 0.75), (9.0, 0.75)):
        best = stand(point("o", [1, 1, 0, 0], forwards), rival).best["flop_equiv"]
        assert best is not None
        assert (best.names, best.accuracy) == (("r",), pytest.approx(accuracy))
        assert best.ahead == pytest.approx(0.5 - accuracy)
    assert stand(point("o", [1, 1, 0, 0], 1.9), rival).best["flop_equiv"] is None


def test_what_a_rival_has_for_less_it_has_for_more_too() -> None:
    rival = Curve("r", (point("a", [1, 1, 1, 0], 2.0), point("b", [1, 0, 0, 0], 4.0)))
    for forwards in (2.0, 3.0, 4.0):
        best = stand(point("o", [1, 1, 0, 0], forwards), rival).best["flop_equiv"]
        assert best is not None
        assert best.accuracy == pytest.approx(0.75)


def test_the_interval_is_of_the_paired_difference_and_has_its_sign() -> None:
    ahead = stand(point("o", [1] * 40, 2.0), Curve("r", (point("a", [1, 0] * 20, 2.0),)))
    best = ahead.best["flop_equiv"]
    assert best is not None
    assert best.ahead == 0.5
    assert 0.3 < best.interval[0] < 0.5 < best.interval[1] < 0.7
    same = stand(point("o", [1, 0] * 20, 2.0), Curve("r", (point("a", [1, 0] * 20, 2.0),)))
    assert same.best["flop_equiv"] == Best(("r",), 0.5, 0.0, (0.0, 0.0))


def test_axes_are_held_apart_and_rivals_that_are_level_are_all_named() -> None:
    cheap = Curve("cheap", (point("a", [1, 0], 2.0, seconds=9.0),))
    quick = Curve("quick", (point("b", [0, 1], 2.0, seconds=0.5),))
    found = stand(point("o", [1, 1], 2.0, seconds=1.0), cheap, quick)
    assert found.costs == {"flop_equiv": 2.0, "seconds": 1.0}
    names = {axis: best.names for axis, best in found.best.items() if best is not None}
    assert names == {"flop_equiv": ("cheap", "quick"), "seconds": ("quick",)}


def test_every_point_of_a_curve_over_options_stands_for_itself() -> None:
    ours = Curve("ours", (point("x", [1, 1], 2.0), point("y", [1, 0], 5.0)))
    rival = Curve("r", (point("a", [0, 1], 1.0),))
    found = standings([ours, rival], "ours", {"r", "ours"}, AXES)
    assert [(s.sampler, s.accuracy) for s in found] == [("y", 0.5), ("x", 1.0)]


def with_groups(*groups: Group) -> Comparison:
    study = Study(task="fake", difficulty="hard", groups=groups, items=6)
    return analyse(run_study(study, FakeTask()), ["entropy"])


def test_groups_that_are_no_rivals_are_left_out_and_the_result_is_stored() -> None:
    groups = [Group((name,), (Setting(1),)) for name in ("entropy", "confidence", "margin")]
    everyone = with_groups(*groups).standing[0].best["flop_equiv"]
    assert everyone is not None
    assert set(everyone.names) <= {"confidence", "margin"}
    some = with_groups(*groups[:2], replace(groups[2], rival=False))
    best = some.standing[0].best["flop_equiv"]
    assert best is not None
    assert best.names == ("confidence",)
    assert comparison_from_json(some.as_json()).standing == some.standing
    none = with_groups(groups[0], replace(groups[1], rival=False))
    assert none.standing[0].best == {"flop_equiv": None, "seconds": None}


def test_the_table_has_a_row_per_setting_and_says_where_no_rival_is_so_cheap() -> None:
    best = Best(("a", "b"), 0.6, -0.1, (-0.2, 0.0))
    costs = {"flop_equiv": 2.0, "seconds": 0.25}
    found = Standing("o", Setting(3), 0.5, costs, {"flop_equiv": best, "seconds": None})
    (row,) = standing_table([replace(fake_comparison(), standing=(found,))]).rows
    assert row[:6] == ("`fake`", "3 per step", "50.0 %", "2.0", "`a` = `b`", "60.0 %")
    assert row[6:] == ("−10.0 [−20.0, 0.0]", "0.250", "none so cheap", "–", "–")
