"""SDAR (1.7B, 4B, 8B and 30B-A3B) on transformers' Qwen3 classes, run block-causally.

Parameters have Qwen3's names already; the logits are not shifted, although SDAR comes from
a next-token model. The length of the blocks is not part of the weights' names or shapes:
it is 4 unless the config or the caller says otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from boe.denoisers.published.block_causal import block_causal_denoiser, block_length_of
from boe.denoisers.published.blueprint import Blueprint, refuse_variants, required
from boe.denoisers.published.experts import expert_pieces
from boe.denoisers.weights import KeyMap, Pieces

MASK_ID = 151669
BLOCK_LENGTH = 4
_DENSE, _SPARSE = "sdar", "sdar_moe"
_SWITCHES = {
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "rope_scaling": None,
    # SDAR-shaped verifiers of speculative decoding, which are causal.
    "use_regular_causal": False,
}
_SPARSE_SWITCHES = {"decoder_sparse_step": 1, "mlp_only_layers": []}
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
)
_KEPT_SPARSE = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
_IN_LAYER = (
    "input_layernorm",
    "post_attention_layernorm",
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    "self_attn.q_norm",
    "self_attn.k_norm",
)
_DENSE_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def recognises(config: dict[str, Any]) -> bool:
    return config.get("model_type") == _DENSE


def recognises_sparse(config: dict[str, Any]) -> bool:
    return config.get("model_type") == _SPARSE


def blueprint(config: dict[str, Any]) -> Blueprint:
    """From a published config.

    Raises:
        UnsupportedModel: a setting is absent, or one that we do not compute.
    """
    native = _native_config(config)
    return Blueprint(
        format=config["model_type"],
        vocab_size=native["vocab_size"],
        build=lambda: _build(native),
        keys=_keys(native),
        denoiser=block_causal_denoiser,
        mask_id=config.get("mask_token_id"),
        default_mask_id=MASK_ID,
        native_config=config,
        tokenizer="Qwen2Tokenizer",
        ties_head=native["tie_word_embeddings"],
        block_length=block_length_of(config, BLOCK_LENGTH),
    )


def _native_config(config: dict[str, Any]) -> dict[str, Any]:
    refuse_variants(config, _SWITCHES, "SDAR")
    sparse = config["model_type"] == _SPARSE
    kept: tuple[str, ...] = _KEPT
    if sparse:
        refuse_variants(config, _SPARSE_SWITCHES, "SDAR")
        kept = _KEPT + _KEPT_SPARSE
    width, heads = (required(config, key, "SDAR") for key in ("hidden_size", "num_attention_heads"))
    return {
        "model_type": "qwen3_moe" if sparse else "qwen3",
        "is_causal": False,
        **{key: required(config, key, "SDAR") for key in kept},
        "head_dim": config.get("head_dim") or width // heads,
        "attention_bias": False,
        "use_sliding_window": False,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "use_cache": False,
    }


def _keys(native: dict[str, Any]) -> KeyMap:
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    tied = native["tie_word_embeddings"]
    names += [] if tied else ["lm_head.weight"]
    pieces: dict[str, Pieces] = {}
    for layer in range(native["num_hidden_layers"]):
        place = f"model.layers.{layer}"
        sparse = "num_experts" in native
        parts = [*_IN_LAYER, *(["mlp.gate"] if sparse else _DENSE_MLP)]
        names += [f"{place}.{part}.weight" for part in parts]
        if sparse:
            pieces |= expert_pieces(
                f"{place}.mlp.experts",
                native["num_experts"],
                native["moe_intermediate_size"],
                native["hidden_size"],
            )
    ignored = frozenset({"lm_head.weight"} if tied else ())
    return KeyMap({name: name for name in names}, pieces, ignored=ignored)


def _build(native: dict[str, Any]) -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRotaryEmbedding

    config: Any
    if native["model_type"] == "qwen3":
        config = Qwen3Config.from_dict(native)
        kind, rotary = Qwen3ForCausalLM, Qwen3RotaryEmbedding
    else:
        config = Qwen3MoeConfig.from_dict(native)
        kind, rotary = Qwen3MoeForCausalLM, Qwen3MoeRotaryEmbedding
    with torch.device("meta"):
        model = kind(config)
    # Its buffers are no part of a checkpoint, so they cannot be left without memory.
    model.model.rotary_emb = rotary(config)
    return model
