"""Strategies from specification strings, and back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from boe import BoE, Confidence, Entropy, Margin, Random, Strategy, Tokens, sampler_from, spec_of
from boe.samplers import (
    COUNTS,
    PARTICLES,
    REMASKS,
    SAMPLERS,
    SMC,
    Ancestral,
    BackgroundFrequencies,
    EntropyBound,
    ForwardBackward,
    Klass,
    LladaLoop,
    LookUM,
    OverlapBound,
    PCSampler,
    Proofread,
    RemdmCap,
    Threshold,
    strategy_from,
)


@pytest.mark.parametrize(
    ("spec", "sampler"),
    [
        ("random", Random()),
        ("confidence", Confidence()),
        ("margin", Margin()),
        ("entropy", Entropy()),
        ("boe", BoE()),
        ("boe:preset=paper", BoE.preset("paper")),
        ("boe:alpha=1,rho=0.5", BoE(alpha=1.0, rho=0.5)),
        (
            "boe:preset=paper,alpha=0.5,active=masked",
            BoE.preset("paper", alpha=0.5, active="masked"),
        ),
        ("boe:tolerance=none,max_probes=7", BoE(tolerance=None, max_probes=7)),
        ("boe:tolerance=0.2,top_k=none", BoE(tolerance=0.2)),
        (
            "boe:penalty=0.1,floor=1,penalty_anneal=true",
            BoE(penalty=0.1, floor=1.0, penalty_anneal=True),
        ),
        ("boe:penalty_anneal=False", BoE(penalty_anneal=False)),
        ("boe:engine=late,context=full", BoE(engine="late", context="full")),
        ("boe:penalty=1e+3,floor=1", BoE(penalty=1000.0, floor=1.0)),
        ("mdlm:steps=none", Ancestral()),
        ("lookum:threshold=0.8", LookUM(threshold=0.8)),
    ],
)
def test_a_specification_names_a_policy_and_its_options(spec: str, sampler: object) -> None:
    assert sampler_from(spec) == sampler


@pytest.mark.parametrize(
    ("spec", "strategy"),
    [
        ("boe+eb:gamma=0.05", Strategy(BoE(), count=EntropyBound(0.05))),
        ("overlap:gamma=0.1,floor=0.5", Strategy(Entropy(), count=OverlapBound(0.1, floor=0.5))),
        (
            "overlap:floor=0.9,fill=cost,slack=inf",
            Strategy(Entropy(), count=OverlapBound(floor=0.9, fill="cost", slack=math.inf)),
        ),
        (
            "boe:rho=0.5+threshold:value=0.8+remdm-cap",
            Strategy(BoE(rho=0.5), count=Threshold(0.8), remask=RemdmCap()),
        ),
        ("margin+tokens:temperature=0.5", Strategy(Margin(), tokens=Tokens(0.5))),
        ("klass", Strategy(Confidence(), count=Klass())),
        ("fb", Strategy(Ancestral(), remask=ForwardBackward())),
        (
            "remdm-cap:eta=0.1+tokens:top_p=0.9",
            Strategy(Ancestral(), remask=RemdmCap(0.1), tokens=Tokens(top_p=0.9)),
        ),
        (
            "smc:particles=3+eb+remdm-llada",
            Strategy(Confidence(), EntropyBound(), None, LladaLoop(), SMC(3)),
        ),
    ],
)
def test_further_parts_decide_how_many_what_is_taken_back_and_what_is_written(
    spec: str, strategy: Strategy
) -> None:
    assert sampler_from(spec) == strategy


@pytest.mark.parametrize(
    ("strategy", "spec"),
    [
        (BoE(), "boe"),
        (BoE(alpha=0.0, tolerance=None), "boe:tolerance=none,alpha=0.0"),
        (
            BoE(penalty=0.1, floor=1.0, penalty_anneal=True),
            "boe:penalty=0.1,floor=1.0,penalty_anneal=true",
        ),
        (Strategy(Entropy(), count=EntropyBound()), "entropy+eb"),
        (Strategy(Ancestral(steps=9)), "mdlm:steps=9"),
        (
            Strategy(BoE(), EntropyBound(0.2), Tokens(0.7, 0.9), RemdmCap(0.1), SMC(every=3)),
            "boe+eb:gamma=0.2+tokens:temperature=0.7,top_p=0.9+remdm-cap:eta=0.1+smc:every=3",
        ),
    ],
)
def test_a_strategy_has_a_specification(strategy: object, spec: str) -> None:
    assert spec_of(strategy) == spec
    assert Strategy.of(sampler_from(spec)) == Strategy.of(strategy)


def test_blanks_around_options_do_not_matter() -> None:
    assert sampler_from("boe:alpha = 0.5, rho=1") == BoE(alpha=0.5, rho=1.0)


@pytest.mark.parametrize("sampler", [None, 3, ["boe"]])
def test_what_is_no_sampler_is_refused_by_name(sampler: object) -> None:
    with pytest.raises(TypeError, match="sampler must be a specification text"):
        sampler_from(sampler)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sampler must be a specification text, a policy or a str"):
        strategy_from(sampler)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "part", [{"count": "eb"}, {"tokens": 0.7}, {"cache": "delayed"}, {"remask": EntropyBound(0.1)}]
)
def test_a_part_in_a_place_of_another_is_refused_by_name(part: dict[str, object]) -> None:
    (place,) = part
    with pytest.raises(TypeError, match=f"{place} must be a .*, got "):
        Strategy(BoE(), **part)  # type: ignore[arg-type]


def test_the_paper_preset_can_be_spelled_out() -> None:
    assert sampler_from(spec_of(BoE.preset("paper"))) == BoE.preset("paper")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "sampler must be one of random, confidence, margin, entropy, boe, .*got ''"),
        ("bo", "sampler must be one of .*eb.*remdm-cap.*smc.*got 'bo'"),
        ("tokens", "tokens is a further part: put a policy before it, as in boe\\+tokens"),
        ("boe:beta=1", r"boe has no option 'beta=1'; its options: candidates, rho"),
        ("boe:alpha", "boe has no option 'alpha'"),
        ("confidence:alpha=1", "confidence has no option 'alpha=1'; its options: none"),
        ("boe:rho=0.5,confidence", "no option 'confidence'; .*, ';' separates them"),
        ("boe+tokens:nucleus=wide", "nucleus must be one of within, reaching, got 'wide'"),
        ("margin:preset=paper", "margin has no option 'preset=paper'"),
        ("boe:alpha=much", "alpha must be a number, got 'much'"),
        ("boe:max_probes=1.5", r"max_probes must be a whole number or none, got '1\.5'"),
        ("boe:rho=none", "rho must be a number, got 'none'"),
        ("boe:penalty_anneal=1", "penalty_anneal must be true or false, got '1'"),
        ("boe:preset=best", "preset must be one of default, paper, got 'best'"),
        ("boe:alpha=2", r"alpha must be in \[0, 1\], got 2\.0"),
        ("boe:active=candidates", "the zero-gradient combination"),
        ("boe:alpha=0,alpha=1", "boe has the option alpha twice"),
        (
            "boe+what",
            "a further part must be one of eb, overlap, .*, verified, .*delayed, got 'what'",
        ),
        ("boe+margin", "names two policies; a policy comes first, and once"),
        ("boe+eb+threshold", "has two parts that decide count"),
        ("eb+klass", "has two parts that decide count"),
        ("gibbs", "reward_fn must be given"),
        ("gibbs:reward_fn=f", "reward_fn has no text form; pass it in Python"),
        ("smc:particles=1", "particles must be at least 2, got 1"),
        ("smc:every=0", "every must be at least 1, got 0"),
        ("smc:potential=luck", "potential must be one of likelihood, certainty, got 'luck'"),
        ("smc:ess=2", r"ess must be in \[0, 1\], got 2\.0"),
        ("smc:temperature=0", "temperature must be finite and above 0, got 0.0"),
    ],
)
def test_a_wrong_specification_is_refused_with_the_reason(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_from(spec)


def test_names_are_unique_and_those_of_their_classes() -> None:
    tables = (SAMPLERS, COUNTS, REMASKS, PARTICLES)
    names = [name for table in tables for name in table]
    assert len(set(names)) == len(names)
    assert all(kind.name == name for table in tables for name, kind in table.items())
    assert all(
        kind.home in SAMPLERS for table in (COUNTS, REMASKS, PARTICLES) for kind in table.values()
    )


def test_every_part_says_what_it_is_and_where_it_comes_from() -> None:
    for table in (SAMPLERS, COUNTS, REMASKS, PARTICLES):
        for kind in table.values():
            # A dataclass without a docstring gets its signature for one.
            assert not kind.__doc__.startswith(kind.__name__ + "(")


def test_a_strategy_holds_a_policy() -> None:
    with pytest.raises(TypeError, match="which must be a policy, got str"):
        Strategy("boe")


@pytest.mark.parametrize("name", ["a,b.json", "my+file.json", "a;b.json"])
def test_a_file_whose_name_would_end_an_option_has_no_specification(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    BackgroundFrequencies.of_ids([torch.tensor([0, 1])], 4).save(path)
    with pytest.raises(ValueError, match="frequencies has no text form"):
        spec_of(PCSampler(frequencies=str(path)))


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        (OverlapBound, {"gamma": "0.1"}, "gamma must be a number, got '0.1'"),
        (OverlapBound, {"floor": None}, "floor must be a number, got None"),
        (Klass, {"history": 2.5}, "history must be a whole number, got 2.5"),
        (Proofread, {"rounds": "3"}, "rounds must be a whole number, got '3'"),
        (BoE, {"alpha": None}, "alpha must be a number, got None"),
        (BoE, {"every": None}, "every must be a whole number, got None"),
        (Tokens, {"top_p": "0.9"}, "top_p must be a number, got '0.9'"),
        (SMC, {"particles": 2.0}, "particles must be a whole number, got 2.0"),
    ],
)
def test_an_option_that_is_no_number_is_refused_by_name(part, options: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        part(**options)
