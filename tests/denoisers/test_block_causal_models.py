"""What is particular to LLaDA2 and SDAR: blocks, routing, how their tensors are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_checkpoints import (
    BLOCK_LENGTHS,
    LLADA2,
    MASK,
    SDAR,
    SDAR_MOE,
    WORDS,
    load_published,
    make_exact,
    random_state,
    write_checkpoint,
)
from published_references import llada2_logits, llada2_routing, sdar_logits, sdar_routing
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers import UnsupportedModel
from boe.denoisers.checkpoint import Checkpoint, CheckpointError
from boe.denoisers.conversion import convert
from boe.denoisers.doctor import Examination
from boe.denoisers.loading import build_published
from boe.denoisers.published import blueprint_of
from boe.lm_eval.likelihood import LikelihoodEstimator, Passage

MODELS = tuple(BLOCK_LENGTHS)
WRITABLE = list(range(MASK))


def words(length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, WORDS, (1, length), generator=generator)


@pytest.mark.parametrize("name", MODELS)
def test_a_position_sees_its_own_block_and_those_before_it(name: str, tmp_path: Path) -> None:
    denoiser = load_published(name, tmp_path).denoiser
    length = BLOCK_LENGTHS[name]
    assert denoiser.facts.block_length == length
    assert denoiser.facts.logits_shift == 0
    positions = torch.arange(3 * length).unsqueeze(0)
    ids = words(3 * length)
    before = denoiser.predict(Canvas.of(ids), positions).logits[0][:, WRITABLE]
    for changed in (0, length - 1, length, 2 * length):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % WORDS
        after = denoiser.predict(Canvas.of(other), positions).logits[0][:, WRITABLE]
        moved = (after - before).abs().amax(dim=-1)
        start = changed // length * length
        # Experts get other tokens in their batch: equal up to rounding only.
        assert bool((moved[:start] < 1e-12).all())
        assert bool((moved[start:] > 1e-6).all())


@pytest.mark.parametrize("name", ["llada2", "sdar_moe"])
def test_the_router_is_the_hand_written_one_in_float32_whatever_the_weights(
    name: str, tmp_path: Path
) -> None:
    config, route = {"llada2": (LLADA2, llada2_routing), "sdar_moe": (SDAR_MOE, sdar_routing)}[name]
    state = random_state(config, torch.bfloat16 if name == "llada2" else torch.float32)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, config, state))
    blueprint = blueprint_of(checkpoint.config)
    assert blueprint is not None
    router = build_published(checkpoint, blueprint, MASK).model.model.layers[1].mlp.gate
    assert router.weight.dtype == state["model.layers.1.mlp.gate.weight"].dtype
    h = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).to(router.weight.dtype)
    _, weights, experts = router(h)
    assert weights.dtype == torch.float32
    ours = torch.zeros(64, config["num_experts"]).scatter(1, experts, weights)
    theirs = route(h.float(), state, "model.layers.1.mlp", config)
    torch.testing.assert_close(ours, theirs)
    assert bool(((ours > 0).sum(dim=1) == config["num_experts_per_tok"]).all())


@pytest.mark.parametrize("name", ["llada2", "sdar", "sdar_moe"])
def test_in_float32_the_models_agree_with_their_hand_written_networks_too(
    name: str, tmp_path: Path
) -> None:
    config = {"llada2": LLADA2, "sdar": SDAR, "sdar_moe": SDAR_MOE}[name]
    logits = llada2_logits if name == "llada2" else sdar_logits
    state = random_state(config, torch.float32)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, config, state))
    blueprint = blueprint_of(checkpoint.config)
    assert blueprint is not None
    denoiser = build_published(checkpoint, blueprint, MASK)
    ids = words(19)
    ours = denoiser.predict(Canvas.of(ids), torch.arange(19).unsqueeze(0)).logits[0][:, WRITABLE]
    valid = torch.ones(1, 19, dtype=torch.bool)
    single = logits(state, config, denoiser.embed(ids), valid)[0][:, WRITABLE]
    exact = {name: tensor.double() for name, tensor in state.items()}
    double = logits(exact, config, denoiser.embed(ids).double(), valid)[0][:, WRITABLE]
    error = float((single.double() - double).abs().max())
    assert float((ours.double() - double).abs().max()) <= 4 * error
    assert error > 0


def test_the_router_chooses_by_biased_scores_and_weighs_by_unbiased_ones(tmp_path: Path) -> None:
    """Published: the bias balances the load and must not change what an expert contributes."""
    state = random_state(LLADA2)
    far = {**state}
    for layer in (1, 2):
        bias = torch.full((8,), -100.0)
        bias[[0, 1, 6]] = 100.0
        far[f"model.layers.{layer}.mlp.gate.expert_bias"] = bias
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, LLADA2, far))
    blueprint = blueprint_of(checkpoint.config)
    assert blueprint is not None
    router = build_published(checkpoint, blueprint, MASK).model.model.layers[2].mlp.gate
    h = torch.randn(5, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _, weights, experts = router(h)
    assert experts.sort().values.tolist() == [[0, 1, 6]] * 5
    scores = (h.float() @ far["model.layers.2.mlp.gate.weight"].float().T).sigmoid()
    chosen = scores.gather(1, experts)
    torch.testing.assert_close(weights, 2.5 * chosen / chosen.sum(dim=1, keepdim=True))


def test_a_tied_sdar_uses_its_embeddings_as_head_and_may_store_them_twice(tmp_path: Path) -> None:
    tied = load_published("sdar", tmp_path / "once", tie_word_embeddings=True)
    assert tied.denoiser.head.weight is tied.denoiser.embedding_table
    ids = words(9)
    everywhere = torch.arange(9).unsqueeze(0)
    ours = tied.denoiser.predict(Canvas.of(ids), everywhere).logits
    theirs = tied.logits(tied.embeds(ids), torch.ones(1, 9, dtype=torch.bool))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    twice = {**tied.state, "lm_head.weight": tied.state["model.embed_tokens.weight"].clone()}
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "twice", tied.config, twice))
    blueprint = blueprint_of(checkpoint.config)
    assert blueprint is not None
    again = build_published(checkpoint, blueprint, MASK)
    assert again.head.weight is again.embedding_table


@pytest.mark.parametrize("config", [LLADA2, SDAR_MOE], ids=["llada2", "sdar_moe"])
def test_an_expert_that_is_missing_or_of_another_shape_is_named(
    config: dict, tmp_path: Path
) -> None:
    state = random_state(config)
    name = "model.layers.2.mlp.experts.3.down_proj.weight"
    for k, (changed, message) in enumerate(
        [
            ({n: t for n, t in state.items() if n != name}, f"1 missing: {name}"),
            ({**state, name: state[name].T.contiguous()}, f"{name} is \\[16, 32\\], not"),
            ({**state, name.replace("3", "99", 1): state[name].clone()}, "1 unexpected"),
        ]
    ):
        checkpoint = Checkpoint.open(write_checkpoint(tmp_path / str(k), config, changed))
        blueprint = blueprint_of(checkpoint.config)
        assert blueprint is not None
        with pytest.raises(CheckpointError, match=message):
            build_published(checkpoint, blueprint, MASK)


@pytest.mark.parametrize("name", MODELS)
def test_a_conversion_keeps_the_published_names_and_computes_the_same(
    name: str, tmp_path: Path
) -> None:
    published = load_published(name, tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "converted", shard_bytes=20_000)
    converted = Checkpoint.open(tmp_path / "converted")
    assert set(converted.tensors) == set(published.state)
    blueprint = blueprint_of(converted.config)
    assert blueprint is not None
    assert blueprint.block_length == BLOCK_LENGTHS[name]
    again = build_published(converted, blueprint, MASK)
    make_exact(again.model, published.config)
    canvas, positions = Canvas.of(words(19)), torch.arange(19).unsqueeze(0)
    assert torch.equal(
        again.predict(canvas, positions).logits,
        published.denoiser.predict(canvas, positions).logits,
    )


def test_likelihoods_of_block_causal_models_are_refused(tmp_path: Path) -> None:
    denoiser = load_published("sdar", tmp_path).denoiser
    estimator = LikelihoodEstimator(denoiser, draws=2)
    with pytest.raises(UnsupportedModel, match="bounded block by block"):
        estimator.estimate(Passage((1, 2), (3, 4), (), "0"))


def test_bd3lm_ignores_the_range_of_its_training_and_its_time_is_zero(tmp_path: Path) -> None:
    published = load_published("bd3lm", tmp_path / "plain")
    range_of_training = {
        "sampling_eps_min": torch.tensor(1e-3),
        "sampling_eps_max": torch.tensor(1.0),
    }
    state = {**published.state, **range_of_training}
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "full", published.config, state))
    blueprint = blueprint_of(checkpoint.config)
    assert blueprint is not None
    denoiser = build_published(checkpoint, blueprint, MASK)
    assert not denoiser.facts.time_conditioned
    canvas, positions = Canvas.of(words(9)), torch.arange(9).unsqueeze(0)
    assert torch.equal(
        denoiser.predict(canvas, positions).logits,
        published.denoiser.predict(canvas, positions).logits,
    )


@pytest.mark.parametrize("config", [LLADA2, SDAR, SDAR_MOE], ids=["llada2", "sdar", "sdar_moe"])
def test_the_doctor_tells_the_length_of_the_blocks_and_finds_the_engines_in_agreement(
    config: dict, tmp_path: Path
) -> None:
    """In float32, where mixtures of experts run through grouped products."""
    state = random_state(config, torch.float32)
    folder = write_checkpoint(tmp_path, {**config, "block_size": 16}, state)
    findings = {finding.check: finding for finding in Examination(folder).findings()}
    assert findings["format"].detail.endswith("block-causal in blocks of 16")
    for check in ("weights", "forward", "gradient"):
        assert findings[check].verdict == "ok", findings[check]
