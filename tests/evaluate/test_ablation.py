"""One change at a time."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch
from fake_denoiser import FakeDenoiser, table_of
from fake_task import FakeTask
from results_of_fakes import BASE, fake_ablation

from boe.defaults import SAMPLER
from boe.denoisers import EntropyGradient, GradientRequest, Prediction
from boe.denoisers.base import ENGINES
from boe.evaluate import Group, Setting, Study
from boe.evaluate.ablation import (
    RIVAL,
    Variant,
    ablation_from_json,
    study_of,
    tried_out,
    variants_of,
)
from boe.evaluate.ablation_axes import AXES, PARTS, custom_axis
from boe.evaluate.statistics import holm
from boe.samplers import (
    BoE,
    Deadline,
    EntropyBound,
    Margin,
    Proofread,
    Strategy,
    sampler_from,
    spec_of,
)
from boe.samplers.candidates import CANDIDATE_RULES
from boe.samplers.steered_rows import ACTIVE_SETS, PROBE_SETS
from boe.tasks import TASKS


def test_the_papers_rows_are_among_the_axes() -> None:
    axes = {axis.name: list(axis.changes.values()) for axis in AXES}
    assert {"gate": "none"} in axes["gate"]
    assert {"penalty": 0.0} in axes["anti-collapse"]
    assert {"active": "all"} in axes["active"]
    assert axes["rho"] == [{"rho": rho} for rho in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)]


def test_every_axis_names_options_of_boe_or_parts_of_a_strategy() -> None:
    known = {field.name for field in fields(BoE)} | {field.name for field in fields(Strategy)}
    for axis in AXES:
        for changes in axis.changes.values():
            assert set(changes) <= known


def test_every_option_of_boe_is_on_an_axis_or_left_out_for_a_reason() -> None:
    varied = {name for axis in AXES for changes in axis.changes.values() for name in changes}
    left_out = {
        *("bridges", "bridge_rule"),  # say nothing without active=bridges
        *("engine", "guidance_gradient"),  # change no choice without guidance
        *("penalty_anneal", "lookahead_tokens"),
    }
    assert {field.name for field in fields(BoE)} == varied - set(PARTS) | left_out
    assert {"which", "count", "deadline", "cache"} <= varied


@pytest.mark.parametrize("base", ["boe", "boe:preset=paper", "boe+eb:gamma=0.05", SAMPLER])
def test_a_variant_differs_from_the_base_in_its_axis_alone(base: str) -> None:
    axes = {axis.name: axis for axis in AXES}
    whole = Strategy.of(sampler_from(base))
    for variant in variants_of(base):
        if variant.axis == RIVAL or variant.sampler is None:
            continue
        changed = Strategy.of(sampler_from(variant.sampler))
        changes = axes[variant.axis].changes[variant.label]
        options = {name: value for name, value in changes.items() if name not in PARTS}
        if options.get("penalty") == 0.0:
            options["floor"] = 0.0  # nothing reads it without a penalty
        expected = replace(whole, which=replace(whole.which, **options))
        parts = {name: value for name, value in changes.items() if name in PARTS}
        assert changed == replace(expected, **parts)


def test_a_strategy_of_several_parts_is_taken_apart_piece_by_piece() -> None:
    base = "boe+overlap:floor=0.99+deadline"
    rows = {(v.axis, v.label): v.sampler for v in variants_of(base)}
    assert rows["count", "as the budget plans"] == "boe"
    assert rows["count", "overlap:floor=0.99"] == "boe+overlap:floor=0.99"
    assert rows["count", "overlap+deadline"] == "boe+overlap+deadline"
    assert rows["which", "entropy"] == "entropy+overlap:floor=0.99+deadline"
    assert rows["cache", "delayed"] == "boe+overlap:floor=0.99+delayed+deadline"
    assert rows["count", "overlap:floor=0.99+deadline"] == rows["which", "the base's own"] == base


def test_a_base_without_boe_has_the_axes_of_its_parts() -> None:
    variants = variants_of(SAMPLER)
    # Its count leaves nothing to rank.
    assert {v.axis for v in variants} == {RIVAL, "count", "cache", "proofread"}
    greedy = {v.axis for v in variants_of("confidence")}
    assert greedy == {RIVAL, "which", "count", "cache", "proofread"}
    rows = {(v.axis, v.label): v.sampler for v in variants}
    assert rows["count", SAMPLER] == rows["cache", "none"] == spec_of(sampler_from(SAMPLER))
    with pytest.raises(ValueError, match=r"of entropy can be varied: which, count, .*; not rho"):
        variants_of(SAMPLER, [custom_axis("rho", ["0.1"])])


def test_an_axis_of_ones_own_can_be_a_part_of_the_strategy() -> None:
    readings = custom_axis("proofread", ["none", "proofread:rounds=1"])
    assert dict(readings.changes) == {
        "none": {"proofread": None},
        "proofread:rounds=1": {"proofread": Proofread(rounds=1)},
    }
    counts = custom_axis("count", ["none", "eb:gamma=0.2"])
    assert dict(counts.changes) == {
        "none": {"count": None, "deadline": None},
        "eb:gamma=0.2": {"count": EntropyBound(0.2)},
    }
    assert custom_axis("deadline", ["deadline"]).changes["deadline"] == {"deadline": Deadline()}
    assert custom_axis("which", ["margin"]).changes["margin"] == {"which": Margin()}
    assert [v.sampler for v in variants_of("boe", [counts])][1:] == ["boe", "boe+eb:gamma=0.2"]
    with pytest.raises(ValueError, match="'delayed' is no count of a strategy"):
        custom_axis("count", ["delayed"])
    with pytest.raises(ValueError, match="which must be a policy alone, got 'eb'"):
        custom_axis("which", ["eb"])


def test_parts_that_need_a_rule_are_tried_out_with_that_of_the_task() -> None:
    axis = custom_axis("backtrack", ["none", "backtrack:limit=3"])
    variants = variants_of("boe", [axis])
    task = TASKS["countdown"]("hard")
    (item,) = task.items(1, seed=0)
    assert tried_out(variants, task.denoiser(), item, Setting(3), task) == variants
    ruleless = tried_out(variants, task.denoiser(), item, Setting(3))
    assert [v.label for v in ruleless if v.refused] == ["backtrack:limit=3"]


def test_the_impossible_is_listed_with_its_reason() -> None:
    refused = {(v.axis, v.label): v.refused for v in variants_of("boe") if v.sampler is None}
    assert "zero-gradient" in str(refused["active", "candidates"])
    assert ("candidates", "all") in refused


def test_the_papers_rows_can_be_run_from_its_own_setting() -> None:
    rows = {(v.axis, v.label): v.sampler for v in variants_of("boe:preset=paper")}
    expected = BoE.preset("paper", penalty=0.0, floor=0.0)
    assert rows["anti-collapse", "none"] == spec_of(expected)
    assert rows["gate", "none"] == spec_of(BoE.preset("paper", gate="none"))
    assert rows["active", "all"] == spec_of(BoE.preset("paper", active="all"))


def test_what_a_model_cannot_do_is_found_out_by_trying() -> None:
    class Choosy(FakeDenoiser):
        def entropy_gradient(
            self, prediction: Prediction, request: GradientRequest
        ) -> EntropyGradient:
            if request.top_k is not None and request.top_k > 5:
                raise ValueError("top_k must be at most 5")
            return super().entropy_gradient(prediction, request)

    variants = [
        Variant("top_k", "4", f"{BASE},top_k=4"),
        Variant("top_k", "16", f"{BASE},top_k=16"),
        Variant("active", "candidates", None, "why"),
    ]
    denoiser = Choosy(table_of([0.9, 0.5, 0.8, 0.4]), torch.zeros(4))
    item = FakeTask().items(1, 0)[0]
    assert tried_out(variants, denoiser, item, Setting(1)) == [
        variants[0],
        Variant("top_k", "16", None, "top_k must be at most 5"),
        variants[2],
    ]


def test_the_study_runs_the_base_and_each_variant_once() -> None:
    bare = Study("fake", "hard", (Group(("boe",), (Setting(1), Setting(2))),), items=3)
    study = study_of("boe", variants_of("boe"), bare)
    (group,) = study.groups
    assert group.settings == (Setting(1), Setting(2))
    assert group.samplers[:2] == ("boe", "confidence")
    assert len(set(group.samplers)) == len(group.samplers)
    assert study.items == 3


def test_rows_hold_the_base_wherever_an_axis_passes_it() -> None:
    ablation = fake_ablation()
    bases = [(row.variant.axis, row.variant.label) for row in ablation.rows if row.is_base]
    assert bases == [("active", "candidates_probes"), ("rho", "0.5"), ("alpha", "0.5")]


def test_p_values_are_adjusted_for_all_variants_of_a_setting() -> None:
    rows = {row.variant.sampler: row for row in fake_ablation().rows if row.pair is not None}
    expected = holm([row.pair.p_value for row in rows.values() if row.pair])
    assert sorted(row.p_holm for row in rows.values() if row.p_holm is not None) == sorted(expected)


def test_differences_are_variant_minus_base() -> None:
    ablation = fake_ablation()
    base = next(row.summary for row in ablation.rows if row.is_base)
    for row in ablation.rows:
        if row.pair is not None and row.summary is not None and base is not None:
            assert row.pair.first == row.variant.sampler
            assert row.pair.flop_equiv == pytest.approx(row.summary.flop_equiv - base.flop_equiv)


def test_an_ablation_survives_json() -> None:
    ablation = fake_ablation()
    stored = json.loads(json.dumps(ablation.as_json(), allow_nan=False))
    assert stored["schema"] == "boe/ablate/1"
    assert ablation_from_json(stored) == ablation
    with pytest.raises(ValueError, match="schema must be boe/ablate/1"):
        ablation_from_json({"schema": "boe/compare/2"})


def test_an_axis_of_ones_own_takes_values_as_text() -> None:
    axis = custom_axis("top_k", ["3", "none"])
    assert dict(axis.changes) == {"3": {"top_k": 3}, "none": {"top_k": None}}
    with pytest.raises(ValueError, match="alpha must be"):
        custom_axis("alpha", ["much"])
    with pytest.raises(ValueError, match="speed"):
        custom_axis("speed", ["1"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("active", value) for value in ACTIVE_SETS),
        *(("probes", value) for value in PROBE_SETS),
        *(("candidates", value) for value in CANDIDATE_RULES),
        *(("engine", value) for value in ENGINES),
        *(("context", value) for value in ("frozen", "full")),
        ("bridge_rule", "hidden_change"),
        ("bridges", "0.5"),
        ("between", "confidence"),
        ("lookahead", "3"),
        ("lookahead_tokens", "3"),
        ("close", "0.1"),
    ],
)
def test_values_that_contradict_the_defaults_can_be_given_all_the_same(name, value) -> None:
    ((label, change),) = custom_axis(name, [value]).changes.items()
    assert label == value == str(change[name])
