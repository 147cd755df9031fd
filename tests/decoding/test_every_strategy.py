"""What holds for every strategy, on a real (tiny) model."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tiny_models import MASK_ID, random_words, tiny_denoiser
from torch import Tensor

from boe import Generation, Strategy, TokensPerStep, generate, sampler_from, spec_of
from boe.denoisers import Denoiser
from boe.samplers import (
    COUNTS,
    P2,
    PARTICLES,
    REMASKS,
    SAMPLERS,
    Ancestral,
    ParticleGibbs,
    RemdmConf,
)

SPECS = [
    "random",
    "confidence",
    "margin",
    "entropy",
    "boe:tolerance=none,rho=0.5",
    "pc:frequencies=uniform",
    "pc:frequencies=uniform,form=linear",
    "maskgit",
    "maskgit:choice_temperature=4.5,steps=12",
    "lookahead",
    "lookahead:tokens=2,chunk=3",
    "lookum",
    "lookum:paths=3,span=generated,verifier=confidence",
    "lookum:reuse=false,threshold=0.05",
    "mdlm",
    "mdlm:steps=20+tokens:top_p=0.8",
    "sedd",
    "dfm:steps=3",
    "p2",
    "p2:eta=2,score=random",
    "p2:score=margin+tokens:temperature=0",
    "eb:gamma=1.5",
    "overlap:gamma=2",
    "threshold:value=0.2",
    "factor",
    "klass:confidence=0.05,divergence=0.5",
    "remdm-cap:eta=0.2",
    "remdm-rescale:eta=0.2",
    "remdm-conf",
    "remdm-loop:eta=0.3",
    "fb",
    "remdm-llada:loops=2,ratio=0.7",
    "boe:tolerance=none,rho=1,probes=masked+eb:gamma=2+tokens:temperature=1",
    "boe:tolerance=none,rho=0.5+threshold:value=0.2",
    "boe:tolerance=none,rho=0.5+klass:confidence=0.05,divergence=0.5",
    "boe:tolerance=none,rho=0.5+remdm-rescale:eta=0.4",
    "boe:tolerance=none,rho=0.5+remdm-conf+tokens:temperature=1",
    "boe+eb:gamma=1+fb",
    "boe:tolerance=none,rho=0.5+remdm-llada:loops=2",
    "confidence+proofread",
    "boe:tolerance=none,rho=0.5+proofread:rounds=2,context=full",
    "overlap:gamma=2+deadline+proofread:ratio=0.5+tokens:temperature=1",
    "confidence+tokens:temperature=1+smc:every=2",
    "mdlm+smc:every=2,ess=1,potential=certainty,carry=false",
    "lookum:paths=1+smc:particles=2,every=1,potential=certainty,ess=1",
    "remdm-conf+smc:every=2,ess=1",
    "klass:confidence=0.05,divergence=0.5+tokens:temperature=1+smc:every=2,ess=1",
]
REWARDED = [
    Strategy(Ancestral(), particles=ParticleGibbs(lambda x: (x > 20).sum(1).double(), every=2)),
    Strategy(
        Ancestral(steps=6),
        remask=RemdmConf(),
        particles=ParticleGibbs(
            lambda x: (x % 2).sum(1).double(),
            every=2,
            sweeps=3,
            completions=2,
            answer="best",
        ),
    ),
]
ALL = [*SPECS, *REWARDED]
NAMES = [*SPECS, "gibbs", "gibbs-best"]


@cache
def denoiser() -> Denoiser:
    return tiny_denoiser("bert", 2)


def canvases() -> list[Tensor]:
    return [
        random_words(13, [0, 2, 3, 6, 8, 11, 12], seed=1),
        random_words(7, [1, 2, 5], seed=2),
        random_words(16, [4, 5, 6, 15], seed=3),
    ]


@cache
def decoded(place: int, block_length: int | None = None) -> Generation:
    return decode(place, canvases(), [10, 11, 12], block_length)


def decode(
    place: int, sequences: list[Tensor], item_ids: list[int], block_length: int | None = None
) -> Generation:
    return generate(
        denoiser(),
        sequences,
        ALL[place],
        budget=TokensPerStep(2),
        block_length=block_length,
        seed=3,
        item_ids=item_ids,
        trajectory=True,
    )


every_strategy = pytest.mark.parametrize("place", range(len(ALL)), ids=NAMES)


def test_every_name_is_among_the_specifications() -> None:
    spelled = {part.partition(":")[0] for spec in SPECS for part in spec.split("+")}
    names = {*SAMPLERS, *COUNTS, *REMASKS, *PARTICLES} - {"gibbs"}
    assert names <= spelled


@every_strategy
@pytest.mark.parametrize("block_length", [None, 4])
def test_no_mask_is_left_and_what_was_given_is_unchanged(
    place: int, block_length: int | None
) -> None:
    for ours, given in zip(decoded(place, block_length).sequences, canvases(), strict=True):
        known = given != MASK_ID
        assert torch.equal(ours[known], given[known])
        assert MASK_ID not in ours.tolist()


@every_strategy
def test_a_sequence_decodes_alone_as_it_does_in_a_padded_batch(place: int) -> None:
    together = decoded(place)
    for k, canvas in enumerate(canvases()):
        alone, ours = decode(place, [canvas], [10 + k]).items[0], together.items[k]
        assert torch.equal(ours.ids, alone.ids)
        for a, b in zip(ours.trajectory, alone.trajectory, strict=True):
            assert torch.equal(a.revealed, b.revealed)
            assert torch.equal(a.tokens, b.tokens)
            assert torch.equal(a.remasked, b.remasked)
        for cost in ("steps", "nfe_forward", "n_backward"):
            assert getattr(ours.account, cost) == getattr(alone.account, cost)
        assert ours.account.flop_equiv == pytest.approx(alone.account.flop_equiv)


@every_strategy
def test_a_decode_is_repeated_bit_for_bit(place: int) -> None:
    again = decode(place, canvases(), [10, 11, 12])
    for a, b in zip(decoded(place).items, again.items, strict=True):
        assert torch.equal(a.ids, b.ids)
        for one, other in zip(a.trajectory, b.trajectory, strict=True):
            assert torch.equal(one.scores, other.scores)


@every_strategy
def test_replaying_the_trajectory_gives_the_sequence(place: int) -> None:
    # Only what is read again can be taken back in the step that has written it.
    reads = "proofread" in NAMES[place]
    for item, canvas in zip(decoded(place).items, canvases(), strict=True):
        given = canvas != MASK_ID
        for record in item.trajectory:
            assert (canvas == MASK_ID).nonzero().squeeze(1).tolist() == record.positions.tolist()
            assert reads or not set(record.revealed.tolist()) & set(record.remasked.tolist())
            assert bool((canvas[record.revealed] == MASK_ID).all())
            canvas[record.revealed] = record.tokens
            assert bool((canvas[record.remasked] != MASK_ID).all())
            assert not bool(given[record.remasked].any())
            canvas[record.remasked] = MASK_ID
        assert torch.equal(canvas, item.ids)


@every_strategy
def test_the_account_counts_every_forward_that_the_model_ran(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = denoiser(), []
    predict = model.predict

    def counted(canvas, positions, keep="nothing"):
        rows.append(canvas.batch)
        return predict(canvas, positions, keep)

    monkeypatch.setattr(model, "predict", counted)
    total = decode(place, canvases(), [10, 11, 12]).total
    assert total.nfe_forward == sum(rows)
    assert total.flop_equiv >= total.nfe_forward


@every_strategy
def test_guidance_doubles_the_forwards_of_the_loop_and_its_lookaheads(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = denoiser(), []
    predict = model.predict

    def counted(canvas, positions, keep="nothing"):
        rows.append(canvas.batch)
        return predict(canvas, positions, keep)

    monkeypatch.setattr(model, "predict", counted)
    result = generate(
        model,
        canvases(),
        ALL[place],
        budget=TokensPerStep(3),
        guidance=0.7,
        seed=3,
    )
    assert result.total.nfe_forward == sum(rows)
    for ids in result.sequences:
        assert MASK_ID not in ids.tolist()


@pytest.mark.parametrize("spec", SPECS)
def test_specifications_survive_the_round_trip(spec: str) -> None:
    strategy = sampler_from(spec)
    assert sampler_from(spec_of(strategy)) == strategy


def test_a_planner_reads_the_same_whatever_the_batch() -> None:
    policy = P2(eta=2.0, planner=tiny_denoiser("bert", 1))
    together = generate(denoiser(), canvases(), policy, item_ids=[10, 11, 12])
    for k, canvas in enumerate(canvases()):
        alone = generate(denoiser(), canvas, policy, item_ids=[10 + k]).items[0]
        assert torch.equal(alone.ids, together.items[k].ids)
        assert alone.account.nfe_forward == together.items[k].account.nfe_forward
