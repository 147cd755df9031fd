"""Dream-7B (v0 Base, Instruct, Coder) on transformers' Qwen2 classes, run bidirectionally.

Parameters have Qwen2's names already. Logits are shifted: row j − 1 predicts position j,
a shift that Dream's own code applies in generation and not in ``forward``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from boe.denoisers.published.blueprint import FORMAT_KEY, Blueprint, refuse_variants, required
from boe.denoisers.weights import KeyMap

FORMAT = "dream"
LOGITS_SHIFT = -1
_HEAD = "lm_head.weight"
_SWITCHES = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "use_mrope": False,
    "rope_scaling": None,
}
_IN_LAYER = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    *(f"self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")),
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)
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


def recognises(config: dict[str, Any]) -> bool:
    # Published with a capital; later derivatives write it small.
    return config.get(FORMAT_KEY) == FORMAT or config.get("model_type") in ("Dream", "dream")


def blueprint(config: dict[str, Any]) -> Blueprint:
    """From a published config, or from one that a conversion wrote.

    Raises:
        UnsupportedModel: a setting is absent, or one that we do not compute.
    """
    converted = config.get(FORMAT_KEY) == FORMAT
    native = dict(config) if converted else _native_config(config)
    ties_head = bool(native["tie_word_embeddings"])
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [] if ties_head else [_HEAD]
    names += [
        f"model.layers.{layer}.{part}"
        for layer in range(native["num_hidden_layers"])
        for part in _IN_LAYER
    ]
    return Blueprint(
        format=FORMAT,
        vocab_size=native["vocab_size"],
        build=lambda: _build(native),
        # A head that is the table may have been stored all the same.
        keys=KeyMap(
            {name: name for name in names}, ignored=frozenset({_HEAD} if ties_head else ())
        ),
        denoiser=_denoiser,
        mask_id=native.get("mask_token_id"),
        native_config=native,
        tokenizer="Qwen2Tokenizer",
        ties_head=ties_head,
    )


def _native_config(config: dict[str, Any]) -> dict[str, Any]:
    refuse_variants(config, _SWITCHES, "Dream")
    return {
        FORMAT_KEY: FORMAT,
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "is_causal": False,
        **{key: required(config, key, "Dream") for key in _KEPT},
        "use_sliding_window": False,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "use_cache": False,
        "mask_token_id": config.get("mask_token_id"),
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": config.get("pad_token_id"),
    }


def _build(native: dict[str, Any]) -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    config = Qwen2Config.from_dict(native)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    # Its buffers are no part of a checkpoint, so they cannot be left without memory.
    model.model.rotary_emb = Qwen2RotaryEmbedding(config)
    return model


def _denoiser(model: nn.Module, mask_id: int, suppressed_ids: tuple[int, ...]) -> Any:
    from boe.denoisers.transformers_model import TransformersDenoiser

    return TransformersDenoiser(
        model,
        mask_id,
        suppressed_ids=suppressed_ids,
        logits_shift=LOGITS_SHIFT,
    )
