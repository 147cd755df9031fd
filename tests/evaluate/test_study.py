"""Settings and studies: what is to be decoded."""

from __future__ import annotations

import json

import pytest

from boe import Cosine, FrontLoaded, TokensPerStep
from boe.evaluate import Group, Setting, Study
from boe.evaluate.study import settings_of

ONE, TWO = Setting(1), Setting(2)


def study(**changes: object) -> Study:
    groups = (Group(("confidence", "boe"), (ONE, TWO)),)
    return Study(**{"task": "fake", "difficulty": "hard", "groups": groups, **changes})


@pytest.mark.parametrize(
    ("setting", "budget", "text"),
    [
        (Setting(3), TokensPerStep(3), "3 per step"),
        (Setting(steps=16), FrontLoaded(16), "16 steps"),
        (Setting(cosine=8), Cosine(8), "8 cosine steps"),
        (
            Setting(2, block_length=32, temperature=0.7, top_p=0.9, guidance=1.5),
            TokensPerStep(2),
            "2 per step, blocks of 32, temperature 0.7, top-p 0.9, guidance 1.5",
        ),
    ],
)
def test_a_setting_has_a_budget_a_text_and_a_json_form(setting, budget, text: str) -> None:
    assert setting.budget == budget
    assert str(setting) == text
    assert Setting.from_json(json.loads(json.dumps(setting.as_json()))) == setting


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of tokens_per_step, steps, cosine, got 0"),
        ({"tokens_per_step": 1, "steps": 2}, "got tokens_per_step, steps"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"tokens_per_step": 1.5}, "tokens_per_step must be a whole number"),
        ({"tokens_per_step": 1, "block_length": 0}, "block_length must be a whole number"),
        ({"tokens_per_step": 1, "temperature": -1.0}, "temperature must be finite"),
        ({"tokens_per_step": 1, "temperature": float("nan")}, "temperature must be finite"),
        ({"tokens_per_step": 1, "top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"tokens_per_step": 1, "guidance": -0.5}, "guidance must be finite"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Setting(**options)


def test_points_of_a_curve_are_equal_apart_from_the_budget() -> None:
    a, b = Setting(3, temperature=1.0), Setting(steps=9, temperature=1.0)
    assert a.apart_from_budget == b.apart_from_budget
    assert a.apart_from_budget != Setting(3).apart_from_budget


def test_all_values_of_a_setting_are_combined_budget_by_budget() -> None:
    found = settings_of({"tokens_per_step": [1, 2], "steps": 5, "temperature": [None, 0.5]})
    assert found == (
        Setting(1),
        Setting(1, temperature=0.5),
        Setting(2),
        Setting(2, temperature=0.5),
        Setting(steps=5),
        Setting(steps=5, temperature=0.5),
    )
    assert settings_of({}) == (Setting(1),)
    with pytest.raises(ValueError, match=r"a setting has .*, got 'speed'"):
        settings_of({"speed": 3})


def test_cells_go_setting_by_setting_then_sampler_then_seed() -> None:
    cells = list(study(seeds=(4, 5)).cells())
    assert [(c.setting, c.sampler, c.seed) for c in cells] == [
        (ONE, "confidence", 4),
        (ONE, "confidence", 5),
        (ONE, "boe", 4),
        (ONE, "boe", 5),
        (TWO, "confidence", 4),
        (TWO, "confidence", 5),
        (TWO, "boe", 4),
        (TWO, "boe", 5),
    ]


def test_a_group_can_be_one_curve_of_several_samplers() -> None:
    group = Group(("boe:rho=0.1", "boe:rho=0.5"), (ONE,), curve="boe over ρ")
    assert {cell.curve for cell in study(groups=(group,)).cells()} == {"boe over ρ"}


def test_a_study_survives_json() -> None:
    whole = study(
        groups=(
            Group(("confidence",), (ONE, TWO)),
            Group(("boe",), (ONE,), curve="b"),
            Group(("eb",), (ONE,), rival=False),
        ),
        items=7,
        item_seed=3,
        split="validation",
        seeds=(1, 2),
        batch_size=4,
        traced=2,
        timings=3,
    )
    assert Study.from_json(json.loads(json.dumps(whole.as_json()))) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": ()}, "groups must hold at least one"),
        ({"items": 0}, "items must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"items": 3, "traced": 4}, "traced must be at most the number of items, 3, got 4"),
        ({"timings": 0}, "timings must be at least 1, got 0"),
        ({"seeds": ()}, "seeds must be different numbers"),
        ({"seeds": (1, 1)}, "seeds must be different numbers"),
        ({"split": "holdout"}, "split must be one of"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**changes)


def test_the_same_cell_in_two_groups_is_refused() -> None:
    groups = (Group(("confidence",), (ONE,)), Group(("confidence",), (ONE, TWO)))
    with pytest.raises(ValueError, match="confidence at 1 per step stands in two groups"):
        study(groups=groups)


@pytest.mark.parametrize(
    ("samplers", "settings", "message"),
    [
        ((), (ONE,), "samplers must hold at least one"),
        (("confidence",), (), "settings must hold at least one"),
        (("boe", "boe"), (ONE,), "samplers must be different"),
        (("boe",), (ONE, ONE), "settings must be different"),
        (("best",), (ONE,), "sampler must be one of"),
    ],
)
def test_a_group_that_makes_no_sense_is_refused(samplers, settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Group(samplers, settings)
