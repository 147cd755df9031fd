"""Decoding with the exact cache and the prefix cache, against decoding without."""

from __future__ import annotations

from typing import Any

import published_references
import pytest
import torch
from counted_rows import RAGGED, prompt, published, rows_run
from published_checkpoints import BLOCK_LENGTHS, MASK
from torch import Tensor

from boe import TokensPerStep, generate
from boe.canvas import Canvas
from boe.decoding import Generation
from boe.samplers import Confidence, Strategy
from boe.samplers.particles import SMC, ParticleGibbs

BLOCK_CAUSAL = tuple(BLOCK_LENGTHS)


def assert_same(with_prefix: Generation, without: Generation) -> None:
    assert with_prefix.total.flop_equiv < without.total.flop_equiv
    for ours, theirs in zip(with_prefix.items, without.items, strict=True):
        assert torch.equal(ours.ids, theirs.ids)
        assert ours.account.steps == theirs.account.steps
        assert ours.account.nfe_forward == theirs.account.nfe_forward
        assert ours.account.n_backward == theirs.account.n_backward
        assert ours.account.flop_equiv <= theirs.account.flop_equiv
        for mine, other in zip(ours.trajectory or [], theirs.trajectory or [], strict=True):
            assert torch.equal(mine.revealed, other.revealed)
            torch.testing.assert_close(mine.entropy, other.entropy, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(mine.scores, other.scores, rtol=1e-7, atol=1e-9)


# --- block-causal models: exact -------------------------------------------------------


@pytest.mark.parametrize(
    "sampler",
    [
        "confidence",
        "boe:alpha=0,rho=0.6,tolerance=none,sure=none",
        "boe:rho=0.6,tolerance=none,sure=none",
        "boe:alpha=0.5,context=full,rho=0.6,tolerance=none,sure=none",
        "klass",
        "remdm-cap",
        "lookum:paths=2",
    ],
)
@pytest.mark.parametrize("name", BLOCK_CAUSAL)
def test_the_exact_cache_decodes_what_recomputing_decodes(name: str, sampler: str) -> None:
    options: dict[str, Any] = {"trajectory": True, "budget": TokensPerStep(2), "seed": 5}
    denoiser = published(name).denoiser
    without = generate(denoiser, RAGGED, sampler, **options)
    assert (without.total.n_backward > 0) == sampler.startswith("boe")
    assert_same(generate(denoiser, RAGGED, sampler, kv_cache="exact", **options), without)


@pytest.mark.parametrize(
    "sampler",
    [
        "confidence",
        "boe:rho=0.6,tolerance=none,sure=none",
        "boe:rho=0.6,tolerance=none,sure=none,guidance_gradient=combined",
    ],
)
def test_the_exact_cache_keeps_both_branches_of_guidance(sampler: str) -> None:
    options: dict[str, Any] = {"guidance": 0.7, "trajectory": True}
    denoiser = published("sdar").denoiser
    without = generate(denoiser, RAGGED, sampler, **options)
    assert_same(generate(denoiser, RAGGED, sampler, kv_cache="exact", **options), without)


def test_the_exact_cache_starts_anew_when_particles_are_drawn() -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    denoiser, sampler = published("sdar").denoiser, Strategy(Confidence(), particles=SMC(3))
    without = generate(denoiser, RAGGED[:1], sampler, **options)
    with_prefix = generate(denoiser, RAGGED[:1], sampler, kv_cache="exact", **options)
    assert torch.equal(with_prefix.items[0].ids, without.items[0].ids)


def test_the_exact_cache_runs_and_charges_rows_from_the_last_frozen_block_to_the_current_ones_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = rows_run("llada2", monkeypatch)
    denoiser = published("llada2").denoiser
    # Blocks of 8 of 21 positions, the first 10 given: six masks in [8, 16), five behind.
    item = generate(denoiser, [RAGGED[0]], "confidence", kv_cache="exact").items[0]
    expected = [16, *[8] * 5, 13, *[5] * 4]
    assert counts == [[rows] for rows in expected]
    assert item.account.nfe_forward == len(expected)
    assert item.account.flop_equiv == pytest.approx(sum(expected) / 21)


def test_a_batch_charges_each_sequence_for_its_own_window(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = rows_run("llada2", monkeypatch)
    denoiser = published("llada2").denoiser
    together = generate(denoiser, RAGGED, "confidence", kv_cache="exact")
    assert max(len(count) for count in counts) == 3
    for k, canvas in enumerate(RAGGED):
        alone = generate(denoiser, [canvas], "confidence", kv_cache="exact").items[0]
        assert torch.equal(together.items[k].ids, alone.ids)
        assert together.items[k].account.flop_equiv == pytest.approx(alone.account.flop_equiv)


def test_a_decoded_prefix_is_run_once_more_when_its_block_is_done() -> None:
    """The last step of a block still saw masks in it: its keys and values are not final."""
    denoiser, canvas = published("sdar").denoiser, prompt(4, 8, 7)
    item = generate(denoiser, [canvas], "confidence", kv_cache="exact", trajectory=True).items[0]
    first_of_second = item.trajectory[4]
    ids = item.ids.clone()
    ids[8:] = MASK
    logits = denoiser.predict(Canvas.of(ids), torch.arange(8, 12).unsqueeze(0)).logits[0]
    p = logits.softmax(dim=-1)
    entropy = -(p * p.clamp_min(1e-300).log()).sum(dim=-1)
    torch.testing.assert_close(first_of_second.entropy.double(), entropy, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BLOCK_CAUSAL)
@pytest.mark.parametrize("kv_cache", ["none", "exact"])
def test_a_block_causal_model_is_decoded_in_its_own_blocks(name: str, kv_cache: str) -> None:
    length = BLOCK_LENGTHS[name]
    result = generate(
        published(name).denoiser,
        RAGGED,
        "boe:rho=0.6,tolerance=none,sure=none",
        kv_cache=kv_cache,
        trajectory=True,
    )
    for canvas, item in zip(RAGGED, result.items, strict=True):
        order = torch.cat([record.revealed for record in item.trajectory]) // length
        assert bool((order.diff() >= 0).all())
        for record in item.trajectory:
            assert len(set((record.positions // length).tolist())) == 1
        assert bool((item.ids != MASK).all())
        given = canvas != MASK
        assert torch.equal(item.ids[given], canvas[given])


def test_a_block_causal_model_is_not_decoded_in_other_blocks() -> None:
    denoiser = published("sdar").denoiser
    assert len(generate(denoiser, RAGGED[:1], "confidence", block_length=4).items) == 1
    with pytest.raises(ValueError, match=r"block_length must be 4 or left out: .* got 8"):
        generate(denoiser, RAGGED, "confidence", block_length=8)


# --- bidirectional models: the prefix cache --------------------------------------------


class FrozenAttention:
    """The references' attention with keys and values of the first ``frozen`` positions as an
    earlier forward left them."""

    def __init__(self, layers: int) -> None:
        self.layers, self.frozen, self.kept = layers, 0, []
        self.attention, self.call = published_references.attention, 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        layer = self.call % self.layers
        self.call += 1
        if self.frozen == 0:
            self.kept = [*self.kept[-self.layers + 1 :], (k, v)]
        else:
            k, v = (
                torch.cat([old[:, :, : self.frozen], new[:, :, self.frozen :]], dim=2)
                for old, new in zip(self.kept[layer], (k, v), strict=True)
            )
        return self.attention(q, k, v, *rest)


@pytest.mark.parametrize("name", ["llada", "dream", "mdlm"])
def test_the_prefix_cache_freezes_what_is_in_front_of_the_block_at_its_first_step(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, canvas, length = published(name), prompt(6, 9, 4), 5
    item = generate(
        model.denoiser,
        [canvas],
        "confidence",
        block_length=length,
        kv_cache="prefix",
        trajectory=True,
    ).items[0]
    frozen = FrozenAttention(3)
    monkeypatch.setattr(published_references, "attention", frozen)
    shift = model.denoiser.facts.logits_shift
    ids, block, valid = canvas.clone(), None, torch.ones(1, 15, dtype=torch.bool)
    stale = 0.0
    for record in item.trajectory:
        start = 6 + (int(record.revealed[0]) - 6) // length * length
        frozen.frozen = 0 if block != start else start + shift
        block = start
        logits = model.logits(model.embeds(ids[None]), valid)[0, record.positions + shift]
        p = logits.softmax(dim=-1)
        entropy = -(p * p.clamp_min(1e-300).log()).sum(dim=-1)
        torch.testing.assert_close(record.entropy.double(), entropy, rtol=1e-9, atol=1e-9)
        now = model.denoiser.predict(Canvas.of(ids), record.positions[None]).logits[0]
        keep = [v for v in range(now.shape[-1]) if v != MASK]
        stale = max(stale, float((now - logits)[:, keep].abs().max()))
        ids[record.revealed] = record.tokens
    assert stale > 1e-3, "it is an approximation"


def test_the_prefix_cache_charges_whole_forwards_at_the_first_step_of_a_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = rows_run("dream", monkeypatch)
    item = generate(
        published("dream").denoiser,
        [prompt(6, 9, 4)],
        "confidence",
        block_length=5,
        kv_cache="prefix",
    ).items[0]
    # Dream's row 5 predicts position 6, so that it is run with the block's own rows.
    expected = [15, *[10] * 4, 15, *[5] * 3]
    assert counts == [[rows] for rows in expected]
    assert item.account.nfe_forward == len(expected)
    assert item.account.flop_equiv == pytest.approx(sum(expected) / 15)


@pytest.mark.parametrize(
    "sampler",
    ["boe:alpha=0,rho=0.6,tolerance=none,sure=none", "boe:rho=0.6,tolerance=none,sure=none"],
)
def test_boe_steers_with_an_approximate_prefix_and_is_charged_for_less(sampler: str) -> None:
    denoiser = published("llada").denoiser
    without, frozen = (
        generate(denoiser, RAGGED, sampler, kv_cache=kind, block_length=6)
        for kind in ("none", "prefix")
    )
    for mine, other in zip(frozen.items, without.items, strict=True):
        assert bool((mine.ids != MASK).all())
        assert mine.account.n_backward > 0
        assert mine.account.flop_equiv < other.account.flop_equiv


def test_without_anything_in_front_of_the_masks_nothing_is_approximated() -> None:
    denoiser, canvas = published("llada").denoiser, prompt(0, 9, 1)
    without, frozen = (
        generate(denoiser, [canvas], "boe", kv_cache=kind) for kind in ("none", "prefix")
    )
    assert torch.equal(frozen.items[0].ids, without.items[0].ids)
    assert frozen.items[0].account.flop_equiv == pytest.approx(without.items[0].account.flop_equiv)


# --- refusals -------------------------------------------------------------------------


def test_particle_gibbs_is_refused_on_a_block_causal_model() -> None:
    rule = ParticleGibbs(reward_fn=lambda ids: torch.zeros(len(ids)))
    with pytest.raises(ValueError, match="one block after the other"):
        generate(
            published("sdar").denoiser,
            RAGGED[:1],
            Strategy(Confidence(), particles=rule),
            temperature=1.0,
        )
