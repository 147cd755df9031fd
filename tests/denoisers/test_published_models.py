"""The published models against hand-written networks on the same tensors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from published_checkpoints import (
    BD3LM,
    CONFIGS,
    DREAM,
    LLADA,
    LLADA2,
    MASK,
    MDLM,
    MODELS,
    SDAR,
    SDAR_MOE,
    SEDD,
    SHIFT,
    WORDS,
    Published,
    load_published,
    published_shapes,
    random_state,
    write_checkpoint,
)
from published_references import heads, rms_norm, rotate_half_split, sedd_log_score
from torch import Tensor
from torch.nn.functional import linear

from boe import generate
from boe.canvas import Canvas
from boe.denoisers import UnsupportedModel
from boe.denoisers.checkpoint import Checkpoint
from boe.denoisers.dit_denoiser import DiTDenoiser
from boe.denoisers.loading import build_published
from boe.denoisers.noise import NoiseRange
from boe.denoisers.published import blueprint_of


def words(length: int, masks: list[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (length,), generator=generator)
    ids[masks] = MASK
    return ids


CANVAS = Canvas.of([words(21, [2, 5, 20], 1), words(13, [0, 4], 2)])
POSITIONS = torch.tensor([[2, 5, 20], [0, 4, -1]])


def assert_predicts(published: Published, sigma: Tensor | None = None) -> None:
    denoiser = published.denoiser
    expected = published.logits(published.embeds(CANVAS.ids), CANVAS.valid, sigma=sigma)
    ours = denoiser.predict(CANVAS, POSITIONS).logits
    for row in range(2):
        members = POSITIONS[row][POSITIONS[row] >= 0]
        rows = (members + SHIFT.get(published.name, 0)).clamp_min(0)
        torch.testing.assert_close(
            ours[row, : len(members)], expected[row, rows], rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("name", MODELS)
def test_a_published_checkpoint_computes_what_its_hand_written_network_computes(
    name: str, tmp_path: Path
) -> None:
    published = load_published(name, tmp_path)
    sigma = None
    if name == "sedd":
        # The share of masks among the tokens of each canvas is 1 − e^−σ.
        sigma = -torch.log(1 - torch.tensor([3 / 21, 2 / 13], dtype=torch.float64)).float()
    assert_predicts(published, sigma)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_kv_heads": 2},
        {"rope_full_precision": False},
        {"rope_theta": 10000.0},
        {"weight_tying": True},
        {"mlp_hidden_size": None, "mlp_ratio": 2},
        {"embedding_size": 48},
    ],
)
def test_llada_variants_that_the_config_can_name_are_computed_too(
    changes: dict, tmp_path: Path
) -> None:
    config = {**LLADA, **changes}
    if config["mlp_hidden_size"] is None:
        written = {**config, "mlp_hidden_size": 64}
        state = random_state(written)
        checkpoint = Checkpoint.open(write_checkpoint(tmp_path, config, state))
        blueprint = blueprint_of(checkpoint.config)
        assert blueprint is not None
        model = build_published(checkpoint, blueprint, MASK).model
        assert model.config.intermediate_size == 64
        return
    published = load_published("llada", tmp_path, **changes)
    assert_predicts(published)
    tied = changes.get("weight_tying", False)
    assert (published.denoiser.head.weight is published.denoiser.embedding_table) == tied


@pytest.mark.parametrize(
    ("name", "tied", "head"),
    [
        ("llada", {"weight_tying": True}, "model.transformer.ff_out.weight"),
        ("dream", {"tie_word_embeddings": True}, "lm_head.weight"),
    ],
)
def test_a_tied_head_that_is_stored_all_the_same_is_the_table(
    name: str, tied: dict, head: str, tmp_path: Path
) -> None:
    config = {**CONFIGS[name], **tied}
    state = random_state(config)
    table = next(t for n, t in state.items() if "wte" in n or "embed_tokens" in n)
    state.pop(head, None)
    folder = write_checkpoint(tmp_path, config, {**state, head: torch.zeros_like(table)})
    blueprint = blueprint_of(config)
    assert blueprint is not None
    denoiser = build_published(Checkpoint.open(folder), blueprint, MASK)
    assert denoiser.head.weight is denoiser.embedding_table
    assert torch.equal(denoiser.embedding_table, table)


def test_in_bfloat16_llada_rotates_in_float32_as_published(tmp_path: Path) -> None:
    config = {**LLADA, "n_layers": 1}
    state = random_state(config, torch.bfloat16)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, config, state))
    blueprint = blueprint_of(checkpoint.config)
    assert blueprint is not None
    denoiser = build_published(checkpoint, blueprint, MASK)
    assert denoiser.embedding_table.dtype == torch.bfloat16, "the dtype is kept"
    canvas = CANVAS.select([0])
    prediction = denoiser.predict(canvas, POSITIONS[:1], "attention")
    block = "model.transformer.blocks.0."
    h = state["model.transformer.wte.weight"][canvas.ids]
    h = rms_norm(h, state[f"{block}attn_norm.weight"], 1e-5)
    q = heads(linear(h, state[f"{block}q_proj.weight"]), 4)
    places = torch.arange(21)
    in_float32, rounded_first = (rotate_half_split(q, places, 5e5, full) for full in (True, False))
    assert torch.equal(prediction.state.layers[0].q, in_float32)
    assert not torch.equal(in_float32, rounded_first)


@pytest.mark.parametrize("name", MODELS)
def test_full_size_models_are_built_without_memory_with_the_published_names_and_shapes(
    name: str,
) -> None:
    small = {"hidden_size": 768, "cond_dim": 128, "length": 1024, "n_blocks": 12, "n_heads": 12}
    medium = {**small, "hidden_size": 1024, "n_blocks": 24, "n_heads": 16}
    sizes = {
        "llada": [
            (
                {
                    **LLADA,
                    "d_model": 4096,
                    "n_heads": 32,
                    "n_kv_heads": 32,
                    "n_layers": 32,
                    "mlp_hidden_size": 12288,
                    "vocab_size": 126464,
                    "embedding_size": 126464,
                },
                8_015_581_184,
            )
        ],
        "dream": [
            (
                {
                    **DREAM,
                    "vocab_size": 152064,
                    "hidden_size": 3584,
                    "intermediate_size": 18944,
                    "num_hidden_layers": 28,
                    "num_attention_heads": 28,
                    "num_key_value_heads": 4,
                },
                7_615_616_512,
            )
        ],
        "llada2": [
            (
                {
                    **LLADA2,
                    "vocab_size": 157184,
                    "hidden_size": 2048,
                    "intermediate_size": 5120,
                    "num_hidden_layers": 20,
                    "num_attention_heads": 16,
                    "num_key_value_heads": 4,
                    "head_dim": 128,
                    "rotary_dim": 64,
                    "num_experts": 256,
                    "num_experts_per_tok": 8,
                    "n_group": 8,
                    "topk_group": 4,
                    "moe_intermediate_size": 512,
                },
                16_255_638_528,
            )
        ],
        "sdar": [
            (_sdar(SDAR, 2048, 6144, 28, (16, 8), tie_word_embeddings=True), 1_720_574_976),
            (_sdar(SDAR, 2560, 9728, 36, (32, 8), tie_word_embeddings=True), 4_022_468_096),
            (_sdar(SDAR, 4096, 12288, 36, (32, 8)), 8_190_735_360),
        ],
        "sdar_moe": [
            (
                _sdar(
                    SDAR_MOE,
                    2048,
                    6144,
                    48,
                    (32, 4),
                    num_experts=128,
                    num_experts_per_tok=8,
                    moe_intermediate_size=768,
                ),
                30_532_122_624,
            )
        ],
        "mdlm": [
            (
                {**MDLM, "vocab_size": 50258, **_SMALL_DIT},
                169_627_218,
            )
        ],
        "bd3lm": [({**BD3LM, "vocab_size": 50258, **_SMALL_DIT}, 169_627_218)],
        "sedd": [
            ({**SEDD, "tokens": 50257, "model": small}, 169_627_218),
            ({**SEDD, "tokens": 50257, "model": medium}, 424_477_010),
        ],
    }
    for config, count in sizes[name]:
        blueprint = blueprint_of(config)
        assert blueprint is not None
        model = blueprint.build()
        assert all(parameter.is_meta for parameter in model.parameters())
        assert sum(parameter.numel() for parameter in model.parameters()) == count
        # What the checkpoint must hold, listed by hand, is what the model asks for.
        shapes = published_shapes(config)
        assert set(blueprint.keys) == set(shapes)
        places = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for theirs, place in blueprint.keys.names.items():
            assert tuple(places[place].shape) == shapes[theirs]
        for theirs, parts in blueprint.keys.pieces.items():
            assert parts.shape == shapes[theirs]
        filled = sum(math.prod(parts.shape) for parts in blueprint.keys.pieces.values())
        whole = {piece.place for parts in blueprint.keys.pieces.values() for piece in parts.pieces}
        assert filled == sum(places[place].numel() for place in whole)


_SMALL_DIT = {"hidden_dim": 768, "cond_dim": 128, "n_blocks": 12, "n_heads": 12}


def _sdar(
    base: dict, width: int, inner: int, layers: int, heads: tuple[int, int], **changes: object
) -> dict:
    return {
        **base,
        "vocab_size": 151936,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": 128,
        **changes,
    }


def test_facts_come_from_the_config(tmp_path: Path) -> None:
    dream = load_published("dream", tmp_path / "dream").denoiser.facts
    assert (dream.mask_id, dream.logits_shift, dream.vocab_size) == (MASK, -1, 44)
    assert dream.max_length == 40
    assert not dream.time_conditioned
    llada = load_published("llada", tmp_path / "llada").denoiser.facts
    assert (llada.logits_shift, llada.max_length) == (0, 40)
    sedd = load_published("sedd", tmp_path / "sedd").denoiser.facts
    assert sedd.time_conditioned
    assert sedd.vocab_size == 41


def test_attention_is_bidirectional(tmp_path: Path) -> None:
    for name in ("llada", "dream"):
        denoiser = load_published(name, tmp_path / name).denoiser
        ids = CANVAS.ids[:1].clone()
        before = denoiser.predict(Canvas.of(ids), torch.tensor([[2]])).logits
        ids[0, 19] = (ids[0, 19] + 1) % WORDS
        after = denoiser.predict(Canvas.of(ids), torch.tensor([[2]])).logits
        keep = [v for v in range(44) if v != MASK]
        assert float((before - after)[0, 0, keep].abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("llada", "block_type", "sequential", "block_type = 'sequential'"),
        ("llada", "activation_type", "swiglu", "activation_type = 'swiglu'"),
        ("llada", "attention_layer_norm", True, "attention_layer_norm = True"),
        ("llada", "alibi", True, "alibi = True"),
        ("llada", "include_qkv_bias", True, "include_qkv_bias = True"),
        ("llada", "d_model", None, "must hold 'd_model'"),
        ("dream", "use_sliding_window", True, "use_sliding_window = True"),
        ("dream", "rope_scaling", {"type": "yarn"}, "rope_scaling"),
        ("dream", "hidden_size", None, "must hold 'hidden_size'"),
        ("llada2", "use_qkv_bias", True, "use_qkv_bias = True"),
        ("llada2", "norm_head", True, "norm_head = True"),
        ("llada2", "score_function", "softmax", "score_function = 'softmax'"),
        ("llada2", "use_qk_norm", False, "use_qk_norm = False"),
        ("llada2", "rope_scaling", {"type": "yarn"}, "rope_scaling"),
        ("llada2", "rotary_dim", 12, "rotary_dim = 12, but partial_rotary_factor = 0.5"),
        ("llada2", "num_experts_per_tok", 1, "num_experts_per_tok = 1"),
        ("llada2", "num_shared_experts", None, "must hold 'num_shared_experts'"),
        ("llada2", "block_size", 0, "block_size in config.json must be at least 1, got 0"),
        ("sdar", "attention_bias", True, "attention_bias = True"),
        ("sdar", "use_sliding_window", True, "use_sliding_window = True"),
        ("sdar", "use_regular_causal", True, "use_regular_causal = True"),
        ("sdar", "hidden_size", None, "must hold 'hidden_size'"),
        ("sdar", "block_size", "four", "block_size in config.json must be at least 1, got 'four'"),
        ("sdar_moe", "decoder_sparse_step", 2, "decoder_sparse_step = 2"),
        ("sdar_moe", "num_experts", None, "must hold 'num_experts'"),
        ("mdlm", "cond_dim", None, "must hold 'cond_dim'"),
        ("bd3lm", "cross_attn", False, "cross_attn = False"),
        ("bd3lm", "time_conditioning", True, "time_conditioning = True"),
        ("bd3lm", "block_size", None, "must hold 'block_size'"),
        ("sedd", "graph", {"type": "uniform"}, "only the absorbing graph"),
        ("sedd", "noise", {"type": "cosine"}, "noise.type = 'cosine'"),
    ],
)
def test_a_config_that_asks_for_other_computations_is_refused_by_name(
    name: str, key: str, value: object, message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        blueprint_of({**CONFIGS[name], key: value})


@pytest.mark.parametrize("name", ["llada", "dream", "llada2", "sdar", "sdar_moe"])
def test_rotary_settings_are_read_where_transformers_5_saves_them(name: str) -> None:
    published = CONFIGS[name]
    moved = {key: published[key] for key in published if key.startswith(("rope_th", "partial_"))}
    rest = {
        key: value for key, value in published.items() if key not in moved and key != "rope_scaling"
    }

    def native(config: dict) -> dict:
        blueprint = blueprint_of(config)
        assert blueprint is not None
        said = ("rope_parameters", "rope_scaling")
        return {key: v for key, v in blueprint.native_config.items() if key not in said}

    assert native({**rest, "rope_parameters": moved}) == native(published)
    scaled = {**moved, "rope_type": "yarn", "factor": 4.0}
    with pytest.raises(UnsupportedModel, match="rope_scaling"):
        blueprint_of({**rest, "rope_parameters": scaled})


def test_other_configs_are_none_of_ours() -> None:
    assert blueprint_of({"model_type": "bert"}) is None
    assert blueprint_of({"model_type": "llama"}) is None


@pytest.mark.parametrize("name", MODELS)
def test_a_canvas_alone_is_predicted_as_in_a_padded_batch(name: str, tmp_path: Path) -> None:
    denoiser = load_published(name, tmp_path).denoiser
    together = denoiser.predict(CANVAS, POSITIONS).logits
    for row in range(2):
        members = POSITIONS[row : row + 1, : int((POSITIONS[row] >= 0).sum())]
        alone = denoiser.predict(CANVAS.select([row]), members).logits
        torch.testing.assert_close(
            together[row, : members.shape[1]], alone[0], rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("sampler", ["confidence", "boe", "boe:context=full,active=bridges"])
@pytest.mark.parametrize("name", MODELS)
def test_every_published_model_can_be_sampled_from(name: str, sampler: str, tmp_path: Path) -> None:
    denoiser = load_published(name, tmp_path).denoiser
    result = generate(denoiser, CANVAS, sampler)
    for before, after in zip(CANVAS.sequences(), result.sequences, strict=True):
        assert bool((after != MASK).all())
        assert torch.equal(after[before != MASK], before[before != MASK])


# --- MDLM and SEDD --------------------------------------------------------------------


def test_mdlm_sees_no_time_unless_it_was_trained_with_it(tmp_path: Path) -> None:
    zeroed = load_published("mdlm", tmp_path / "zeroed").denoiser
    told = load_published("mdlm", tmp_path / "told", time_conditioning=True).denoiser
    assert isinstance(zeroed, DiTDenoiser)
    assert isinstance(told, DiTDenoiser)
    assert zeroed.sigma_of(CANVAS).tolist() == [0.0, 0.0]
    assert told.facts.time_conditioned
    assert float(told.sigma_of(CANVAS)[0]) == pytest.approx(-torch.tensor(1 - 3 / 21).log().item())


def test_sedd_probabilities_are_its_normalised_scores_over_the_ids_but_the_mask(
    tmp_path: Path,
) -> None:
    published = load_published("sedd", tmp_path)
    assert isinstance(published.denoiser, DiTDenoiser)
    sigma = published.denoiser.sigma_of(CANVAS)
    network = published.logits(published.embeds(CANVAS.ids), CANVAS.valid, sigma=sigma)
    score = sedd_log_score(network, sigma, CANVAS.ids).exp()
    words_only = [v for v in range(41) if v != MASK]
    at = score[0, POSITIONS[0]][:, words_only]
    expected = at / at.sum(dim=-1, keepdim=True)
    ours = published.denoiser.predict(CANVAS, POSITIONS).logits[0].softmax(dim=-1)
    torch.testing.assert_close(ours[:, words_only], expected, rtol=1e-6, atol=1e-9)
    assert bool((ours[:, MASK] == 0).all())


def test_the_noise_level_is_that_at_which_the_share_of_masks_is_expected() -> None:
    noise = NoiseRange.log_linear()
    lengths = torch.tensor([10, 10, 10])
    sigma = noise.sigma_at(torch.tensor([0, 4, 10]), lengths)
    torch.testing.assert_close(1 - torch.exp(-sigma), torch.tensor([0.0, 0.4, 0.999]))
    limited = NoiseRange.geometric(0.1, 2.0).sigma_at(torch.tensor([0, 4, 10]), lengths)
    torch.testing.assert_close(limited, torch.tensor([0.1, -torch.tensor(0.6).log().item(), 2.0]))


def test_geometric_noise_without_its_ends_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="SEDD checkpoint must hold 'sigma_min'"):
        blueprint_of({**SEDD, "noise": {"type": "geometric", "sigma_max": 20}})


@pytest.mark.parametrize(("least", "most"), [(-1.0, 2.0), (2.0, 2.0), (0.0, float("inf"))])
def test_an_impossible_noise_range_is_refused(least: float, most: float) -> None:
    with pytest.raises(ValueError, match="0 <= least < most"):
        NoiseRange(least, most)


def test_rotary_frequencies_of_the_checkpoint_are_used_and_may_be_absent(tmp_path: Path) -> None:
    state = random_state(MDLM)
    name = "backbone.rotary_emb.inv_freq"
    plain = {k: v for k, v in state.items() if k != name}
    other = {**state, name: 2 * state[name]}
    logits = []
    for k, content in enumerate((state, plain, other)):
        checkpoint = Checkpoint.open(write_checkpoint(tmp_path / str(k), MDLM, content))
        blueprint = blueprint_of(checkpoint.config)
        assert blueprint is not None
        denoiser = build_published(checkpoint, blueprint, MASK)
        logits.append(denoiser.predict(CANVAS, POSITIONS).logits[0])
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
