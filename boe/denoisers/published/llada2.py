"""LLaDA2.x (mini, flash) on transformers' GLM-4-MoE classes, run block-causally.

The published network is Ling's (BailingMoE V2): grouped-query attention with normalised
queries and keys and partial rotary embedding, one dense layer, then mixtures of experts
with a sigmoid router that is limited to groups, and a shared expert. GLM-4-MoE computes the
same; what differs is how tensors are cut: LLaDA2 stores queries, keys and values as one
projection and each expert by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from boe.denoisers.base import UnsupportedModel
from boe.denoisers.published.block_causal import block_causal_denoiser, block_length_of
from boe.denoisers.published.blueprint import Blueprint, refuse_variants, required
from boe.denoisers.published.experts import expert_pieces
from boe.denoisers.weights import KeyMap, Piece, Pieces

FORMAT = "llada2"
MASK_ID = 156895
BLOCK_LENGTH = 32
_SWITCHES = {
    "hidden_act": "silu",
    "use_bias": False,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "use_rmsnorm": True,
    "norm_head": False,
    "rope_scaling": None,
    "use_sliding_window": False,
    "score_function": "sigmoid",
    "router_dtype": "fp32",
    "norm_topk_prob": True,
    "moe_router_enable_expert_bias": True,
    "num_nextn_predict_layers": 0,
}
_KEPT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "moe_intermediate_size",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "n_group",
    "topk_group",
    "first_k_dense_replace",
)
_IN_LAYER = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "attention.query_layernorm": "self_attn.q_norm",
    "attention.key_layernorm": "self_attn.k_norm",
    "attention.dense": "self_attn.o_proj",
}
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def recognises(config: dict[str, Any]) -> bool:
    return config.get("model_type") == "llada2_moe"


def blueprint(config: dict[str, Any]) -> Blueprint:
    """From a published config.

    Raises:
        UnsupportedModel: a setting is absent, or one that we do not compute.
    """
    native = _native_config(config)
    return Blueprint(
        format=FORMAT,
        vocab_size=native["vocab_size"],
        build=lambda: _build(native),
        keys=_keys(native),
        denoiser=block_causal_denoiser,
        mask_id=config.get("mask_token_id"),
        default_mask_id=MASK_ID,
        native_config=config,
        ties_head=native["tie_word_embeddings"],
        block_length=block_length_of(config, BLOCK_LENGTH),
    )


def _native_config(config: dict[str, Any]) -> dict[str, Any]:
    refuse_variants(config, _SWITCHES, "LLaDA2")
    width, heads = (
        required(config, key, "LLaDA2") for key in ("hidden_size", "num_attention_heads")
    )
    head_dim = config.get("head_dim") or width // heads
    partial = config.get("partial_rotary_factor", 0.5)
    rotated = int(head_dim * partial)
    if config.get("rotary_dim", rotated) != rotated:
        raise UnsupportedModel(
            f"this LLaDA2 checkpoint has rotary_dim = {config['rotary_dim']}, but "
            f"partial_rotary_factor = {partial} of head_dim = {head_dim}, which is {rotated}"
        )
    if required(config, "num_experts_per_tok", "LLaDA2") == 1:
        # The published router leaves a single expert's weight as it is; ours makes it one.
        raise UnsupportedModel(
            "this LLaDA2 checkpoint has num_experts_per_tok = 1, which is not supported; "
            "published ones have 8"
        )
    return {
        "model_type": "glm4_moe",
        "is_causal": False,
        **{key: required(config, key, "LLaDA2") for key in _KEPT},
        "head_dim": head_dim,
        "partial_rotary_factor": partial,
        "n_routed_experts": required(config, "num_experts", "LLaDA2"),
        "n_shared_experts": required(config, "num_shared_experts", "LLaDA2"),
        "norm_topk_prob": True,
        "use_qk_norm": True,
        "attention_bias": False,
        "num_nextn_predict_layers": 0,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "use_cache": False,
    }


def _keys(native: dict[str, Any]) -> KeyMap:
    """Where the published tensors go."""
    names = {
        "model.word_embeddings.weight": "model.embed_tokens.weight",
        "model.norm.weight": "model.norm.weight",
    }
    if not native["tie_word_embeddings"]:
        names["lm_head.weight"] = "lm_head.weight"
    pieces: dict[str, Pieces] = {}
    for layer in range(native["num_hidden_layers"]):
        place = f"model.layers.{layer}"
        for theirs, ours in _IN_LAYER.items():
            names[f"{place}.{theirs}.weight"] = f"{place}.{ours}.weight"
        pieces[f"{place}.attention.query_key_value.weight"] = _fused_projection(place, native)
        if layer < native["first_k_dense_replace"]:
            own = [f"{place}.mlp.{part}.weight" for part in _PROJECTIONS]
        else:
            own = [f"{place}.mlp.shared_experts.{part}.weight" for part in _PROJECTIONS]
            own.append(f"{place}.mlp.gate.weight")
            bias = f"{place}.mlp.gate."
            names[f"{bias}expert_bias"] = f"{bias}e_score_correction_bias"
            pieces |= expert_pieces(
                f"{place}.mlp.experts",
                native["n_routed_experts"],
                native["moe_intermediate_size"],
                native["hidden_size"],
            )
        names |= {name: name for name in own}
    tied = {"lm_head.weight"} if native["tie_word_embeddings"] else set()
    return KeyMap(names, pieces, ignored=frozenset(tied))


def _fused_projection(place: str, native: dict[str, Any]) -> Pieces:
    """Queries, keys and values, in this order, in the rows of one matrix."""
    queries = native["num_attention_heads"] * native["head_dim"]
    keys = native["num_key_value_heads"] * native["head_dim"]
    bounds = (0, queries, queries + keys, queries + 2 * keys)
    return Pieces(
        (bounds[-1], native["hidden_size"]),
        tuple(
            Piece(f"{place}.self_attn.{part}_proj.weight", start=start, stop=stop)
            for part, start, stop in zip("qkv", bounds, bounds[1:], strict=False)
        ),
    )


def _build(native: dict[str, Any]) -> nn.Module:
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRotaryEmbedding

    config = Glm4MoeConfig.from_dict(native)
    with torch.device("meta"):
        model = Glm4MoeForCausalLM(config)
    # Its buffers are no part of a checkpoint, so they cannot be left without memory.
    model.model.rotary_emb = Glm4MoeRotaryEmbedding(config)
    return model
