"""How a KV cache is asked for, refused, and compared with none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counted_rows import RAGGED, assert_equal, published
from fake_denoiser import FakeDenoiser

from boe import generate
from boe.denoisers import UnsupportedModel
from boe.evaluate import run_study
from boe.evaluate.settings import Setting
from boe.evaluate.study import Group, Study
from boe.samplers import DelayedCache, PrefixCache, sampler_from, spec_of
from boe.tasks import TASKS


def test_a_strategy_brings_its_cache_and_the_caller_has_the_last_word() -> None:
    strategy = sampler_from("eb:gamma=0.2+delayed:refresh=8")
    assert strategy.cache == DelayedCache(8)
    assert spec_of(strategy) == "entropy+eb:gamma=0.2+delayed:refresh=8"
    assert sampler_from("confidence+prefix").cache == PrefixCache()
    denoiser, options = published("llada").denoiser, {"trajectory": True}
    named = generate(denoiser, RAGGED, "confidence", kv_cache="delayed", **options)
    assert_equal(generate(denoiser, RAGGED, "confidence+delayed", **options), named)
    none = generate(denoiser, RAGGED, "confidence", **options)
    whole = {"kv_cache": "none", **options}
    assert_equal(generate(denoiser, RAGGED, "confidence+delayed", **whole), none)
    often = {"cache_refresh": 1, **options}
    assert_equal(generate(denoiser, RAGGED, "confidence+delayed", **often), none)


@pytest.mark.parametrize(
    ("name", "sampler", "options", "message"),
    [
        ("sdar", "confidence+delayed", {}, "bidirectional models; .* kv_cache='exact'"),
        ("llada", "boe:active=bridges+delayed", {}, "engine='replay' without bridge rows"),
        ("llada", "boe:engine=late,context=full+delayed", {}, "engine='replay' without bridge"),
        ("sedd", "confidence+delayed", {}, "takes the time as an input"),
        ("llada", "confidence", {"cache_refresh": 2}, "kv_cache='prefix' or 'delayed'.*'none'"),
        ("sdar", "confidence+exact", {"cache_refresh": 2}, "got 2 with 'exact'"),
        ("llada", "confidence+delayed", {"cache_refresh": 0}, "at least 1, got 0"),
        ("llada", "confidence+delayed:refresh=none+prefix", {}, "two parts that decide cache"),
        ("llada", "confidence+delayed:often=2", {}, "its options: refresh"),
    ],
)
def test_a_cache_that_cannot_be_had_is_refused_by_name(
    name: str, sampler: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(published(name).denoiser, RAGGED, sampler, **options)


def test_a_study_puts_cached_and_uncached_decodes_side_by_side() -> None:
    """And delayed caching of 4×4 Sudoku costs a third for about as many right answers."""
    samplers = ("confidence", "confidence+delayed", "confidence+delayed:refresh=8")
    study = Study("sudoku4", "hard", (Group(samplers, (Setting(1),)),), items=50)
    task = TASKS["sudoku4"]("hard")
    records = run_study(study, task).records
    right = {s: sum(r.correct for r in records if r.sampler == s) for s in samplers}
    costs = {s: {round(r.flop_equiv, 6) for r in records if r.sampler == s} for s in samplers}
    length, masks = len(task.items(1, 0, "test")[0].canvas), 16
    assert costs["confidence"] == {masks}
    # One mask less in every forward, and the token that was written in its place.
    partial = [left + 1 for left in range(masks - 1, 0, -1)]
    assert costs["confidence+delayed"] == {round(1 + sum(partial) / length, 6)}
    partial[7] = length
    assert costs["confidence+delayed:refresh=8"] == {round(1 + sum(partial) / length, 6)}
    assert right["confidence"] >= 45
    assert right["confidence+delayed"] >= 45


@pytest.mark.parametrize(
    ("name", "sampler", "kv_cache", "message"),
    [
        ("llada", "confidence", "exact", "needs block-causal attention.*kv_cache='delayed'"),
        ("sdar", "confidence", "prefix", "kv_cache='exact'"),
        ("sdar", "confidence", "cached", "must be one of none, exact, prefix, delayed"),
        ("sdar", "boe:engine=late,context=full", "exact", "engine='replay' without bridge rows"),
        (
            "llada",
            "boe:engine=dense,context=full",
            "prefix",
            "engine='replay' without bridge rows",
        ),
        ("llada", "boe:active=bridges", "prefix", "engine='replay' without bridge rows"),
    ],
)
def test_a_cache_that_the_caller_names_and_cannot_have_is_refused(
    name: str, sampler: str, kv_cache: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(published(name).denoiser, RAGGED, sampler, kv_cache=kv_cache)


def test_a_model_that_takes_the_time_or_has_no_windows_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="takes the time as an input"):
        generate(published("sedd").denoiser, RAGGED, "confidence", kv_cache="prefix")
    fake = FakeDenoiser(torch.randn(4, 5))
    with pytest.raises(UnsupportedModel, match="FakeDenoiser cannot be run on some of its rows"):
        generate(fake, torch.zeros(4, dtype=torch.int64), "confidence", kv_cache="prefix")
