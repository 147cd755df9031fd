"""LLaDA-8B (Base, Instruct, 1.5) on transformers' Llama classes, run bidirectionally.

The published network is OLMo's Llama block under OLMo's names. It differs from
transformers' Llama in one more way: queries and keys are rotated in float32 and rounded
afterwards (``rope_full_precision``), where Llama rounds the angles first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from boe.denoisers.published.blueprint import FORMAT_KEY, Blueprint, refuse_variants, required
from boe.denoisers.weights import KeyMap

FORMAT = "llada"
_SWITCHES = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "attention_layer_norm": False,
    "rope": True,
    "rope_scaling": None,
    "alibi": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "clip_qkv": None,
}
_HEAD = "model.transformer.ff_out.weight"
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}


def recognises(config: dict[str, Any]) -> bool:
    return config.get(FORMAT_KEY) == FORMAT or config.get("model_type") == "llada"


def blueprint(config: dict[str, Any]) -> Blueprint:
    """From a published config, or from one that a conversion wrote.

    Raises:
        UnsupportedModel: a setting is absent, or one that we do not compute.
    """
    converted = config.get(FORMAT_KEY) == FORMAT
    native = dict(config) if converted else _native_config(config)
    ties_head = bool(native["tie_word_embeddings"])
    names = _names(native)
    if converted:
        names = {name: name for name in names.values()}
    # A head that is the table may have been stored all the same.
    head = "lm_head.weight" if converted else _HEAD
    keys = KeyMap(names, ignored=frozenset({head} if ties_head else ()))
    return Blueprint(
        format=FORMAT,
        vocab_size=native["vocab_size"],
        build=lambda: _build(native),
        keys=keys,
        denoiser=_denoiser,
        mask_id=native.get("mask_token_id"),
        native_config=native,
        ties_head=ties_head,
    )


def _native_config(config: dict[str, Any]) -> dict[str, Any]:
    refuse_variants(config, _SWITCHES, "LLaDA")
    width, heads = required(config, "d_model", "LLaDA"), required(config, "n_heads", "LLaDA")
    inner = config.get("mlp_hidden_size")
    if inner is None:
        inner = required(config, "mlp_ratio", "LLaDA") * width
    grouped = 1 if config.get("multi_query_attention") else config.get("n_kv_heads")
    return {
        FORMAT_KEY: FORMAT,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "is_causal": False,
        "vocab_size": config.get("embedding_size") or required(config, "vocab_size", "LLaDA"),
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": required(config, "n_layers", "LLaDA"),
        "num_attention_heads": heads,
        "num_key_value_heads": grouped or heads,
        "max_position_embeddings": required(config, "max_sequence_length", "LLaDA"),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_theta": config.get("rope_theta", 10_000.0),
        "rope_full_precision": config.get("rope_full_precision", True),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": bool(config.get("weight_tying", False)),
        "use_cache": False,
        "mask_token_id": config.get("mask_token_id"),
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": config.get("pad_token_id"),
    }


def _names(native: dict[str, Any]) -> dict[str, str]:
    """Llama's names by LLaDA's."""
    names = {
        "model.transformer.wte.weight": "model.embed_tokens.weight",
        "model.transformer.ln_f.weight": "model.norm.weight",
    }
    if not native["tie_word_embeddings"]:
        names[_HEAD] = "lm_head.weight"
    for layer in range(native["num_hidden_layers"]):
        for theirs, ours in _IN_BLOCK.items():
            source = f"model.transformer.blocks.{layer}.{theirs}"
            names[f"{source}.weight"] = f"model.layers.{layer}.{ours}.weight"
    return names


def _build(native: dict[str, Any]) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_dict(native)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    # Its buffers are no part of a checkpoint, so they cannot be left without memory.
    model.model.rotary_emb = _rotary_class(native["rope_full_precision"])(config)
    return model


def _rotary_class(full_precision: bool) -> type[nn.Module]:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    class FullPrecisionRotary(LlamaRotaryEmbedding):
        """cos and sin in float32, so that the rotation is computed in float32 too."""

        def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x[..., :1].float(), position_ids)

    return FullPrecisionRotary if full_precision else LlamaRotaryEmbedding


def _denoiser(model: nn.Module, mask_id: int, suppressed_ids: tuple[int, ...]) -> Any:
    from boe.denoisers.transformers_model import TransformersDenoiser

    return TransformersDenoiser(model, mask_id, suppressed_ids=suppressed_ids)
