"""The model's arguments: what is accepted, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from boe import BoE, FrontLoaded, TokensPerStep
from boe.lm_eval.settings import EvaluationSettings
from boe.samplers import BackgroundFrequencies

settings = EvaluationSettings.from_arguments


def test_semicolons_stand_for_commas_in_a_sampler() -> None:
    chosen = settings(pretrained="m", sampler="boe:alpha=1;rho=0.5+eb:gamma=0.1")
    assert chosen.strategy.which == BoE(alpha=1.0, rho=0.5)
    assert chosen.strategy.count.name == "eb"


def test_the_engine_is_put_into_the_sampler() -> None:
    chosen = settings(pretrained="m", sampler="boe:context=full", engine="late")
    assert chosen.strategy.which == BoE(context="full", engine="late")


def test_steps_and_tokens_per_step_make_the_budget() -> None:
    assert settings(pretrained="m").budget == TokensPerStep(1)
    assert settings(pretrained="m", tokens_per_step=3).budget == TokensPerStep(3)
    assert settings(pretrained="m", steps=16).budget == FrontLoaded(16)


def test_lists_of_tokens_come_as_lists_or_with_semicolons() -> None:
    assert settings(pretrained="m", eos="<a>;<b>").eos == ("<a>", "<b>")
    assert settings(pretrained="m", delay=["<a>"]).delay == ("<a>",)
    assert settings(pretrained="m").eos is None


def test_whole_numbers_do_for_real_ones_and_texts_for_batch_sizes() -> None:
    chosen = settings(pretrained="m", cfg=1, temperature=0, batch_size="4", max_batch_size=None)
    assert (chosen.cfg, chosen.temperature, chosen.batch_size) == (1.0, 0.0, 4)


def test_the_identity_changes_with_what_decides_answers_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = settings(pretrained="m")
    assert settings(pretrained="m", batch_size=8, costs="x", device="cpu").identity == (
        one.identity
    )
    for other in ({"sampler": "margin"}, {"seed": 1}, {"early_stop": False}, {"pretrained": "n"}):
        assert settings(**{"pretrained": "m", **other}).identity != one.identity
    frequencies = tmp_path / "frequencies.json"
    BackgroundFrequencies(torch.tensor([1, 2])).save(frequencies)
    named = settings(pretrained="m", sampler=f"pc:frequencies={frequencies}")
    of_these = named.identity
    BackgroundFrequencies(torch.tensor([2, 1])).save(frequencies)
    assert named.identity != of_these
    now = one.identity
    monkeypatch.setattr("boe.__version__", "another")
    assert one.identity != now


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "must name the checkpoint: pretrained="),
        ({"pretrained": ""}, "pretrained must name a checkpoint"),
        ({"pretrained": "m", "temperature": -1.0}, "temperature must be finite and not negative"),
        ({"pretrained": "m", "top_p": 2.0}, r"top_p must be in \(0, 1\], got 2\.0"),
        ({"pretrained": "m", "block_lenght": 3}, "'block_lenght': did you mean block_length?"),
        ({"pretrained": "m", "rho": 0.5}, r"separated by ';' here: sampler=boe:alpha=0.5;rho="),
        ({"pretrained": "m", "wings": 2}, "unknown model argument 'wings': known are allow_pickle"),
        ({"pretrained": "m", "steps": 2.5}, "steps must be int or none, got 2.5"),
        ({"pretrained": "m", "steps": True}, "steps must be int or none, got True"),
        ({"pretrained": "m", "steps": 0}, "steps must be at least 1, got 0"),
        ({"pretrained": "m", "steps": 2, "tokens_per_step": 2}, "not both"),
        ({"pretrained": "m", "early_stop": "no"}, "early_stop must be bool, got 'no'"),
        ({"pretrained": "m", "eos": [3]}, "eos must be texts or none"),
        ({"pretrained": "m", "cfg": -1.0}, "cfg must be finite and not negative"),
        ({"pretrained": "m", "kv_cache": "cached"}, "kv_cache must be one of none, exact"),
        ({"pretrained": "m", "cache_refresh": 4}, "cache_refresh goes with kv_cache='prefix'"),
        ({"pretrained": "m", "mc_num": 0}, "mc_num must be at least 1"),
        ({"pretrained": "m", "sampler": "magic"}, "sampler must be one of"),
        ({"pretrained": "m", "sampler": "margin", "engine": "late"}, "engine is an option of"),
        ({"pretrained": "m", "batch_size": "auto"}, "batch_size must be a number, got 'auto'"),
        ({"pretrained": "m", "max_batch_size": 8}, "max_batch_size is not supported"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        settings(**arguments)
