"""Tiny random checkpoints of the published models: their config keys, parameter names,
shards and index, written file by file as the Hub serves them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from published_references import (
    dit_logits,
    dream_logits,
    llada2_logits,
    llada2_routing,
    llada_logits,
    sdar_logits,
    sdar_routing,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedTokenizerFast

from boe.denoisers.attention_denoiser import AttentionDenoiser
from boe.denoisers.checkpoint import Checkpoint
from boe.denoisers.loading import build_published
from boe.denoisers.published import blueprint_of

LLADA = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig"},
    "d_model": 32,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 3,
    "mlp_hidden_size": 48,
    "mlp_ratio": 4,
    "vocab_size": 44,
    "embedding_size": 44,
    "max_sequence_length": 40,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "include_bias": False,
    "include_qkv_bias": False,
    "weight_tying": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "alibi": False,
    "mask_token_id": 40,
    "eos_token_id": 38,
    "pad_token_id": 38,
}
DREAM = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
    "vocab_size": 44,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "use_mrope": False,
    "tie_word_embeddings": False,
    "mask_token_id": 40,
    "pad_token_id": 38,
    "eos_token_id": 38,
}
MDLM = {
    "model_type": "mdlm",
    "architectures": ["MDLM"],
    "auto_map": {"AutoModelForMaskedLM": "modeling_mdlm.MDLM"},
    "vocab_size": 41,
    "model_length": 40,
    "hidden_dim": 32,
    "cond_dim": 16,
    "n_blocks": 3,
    "n_heads": 4,
    "dropout": 0.1,
    "time_conditioning": False,
}
BD3LM = {
    "model_type": "bd3lm",
    "architectures": ["BD3LM"],
    "auto_map": {"AutoModelForMaskedLM": "modeling_bd3lm.BD3LM"},
    "block_size": 8,
    "vocab_size": 41,
    "model_length": 40,
    "cross_attn": True,
    "adaln": True,
    "attn_backend": "flex",
    "causal": False,
    "hidden_dim": 32,
    "cond_dim": 16,
    "n_blocks": 3,
    "n_heads": 4,
    "dropout": 0.1,
    "time_conditioning": False,
    "var_min": True,
    "sampling_eps_min": 1e-3,
    "sampling_eps_max": 0.999,
}
SEDD = {
    "ngpus": 8,
    "tokens": 40,
    "graph": {"type": "absorb", "file": "data", "report_all": False},
    "noise": {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20},
    "model": {
        "name": "small",
        "type": "ddit",
        "hidden_size": 32,
        "cond_dim": 16,
        "length": 40,
        "n_blocks": 3,
        "n_heads": 4,
        "scale_by_sigma": True,
        "dropout": 0.1,
    },
}
LLADA2 = {
    "model_type": "llada2_moe",
    "architectures": ["LLaDA2MoeModelLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM"},
    "vocab_size": 44,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "hidden_act": "silu",
    "use_bias": False,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "use_rmsnorm": True,
    "norm_head": False,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40,
    "rope_theta": 600000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "rotary_dim": 6,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "num_experts": 8,
    "num_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "score_function": "sigmoid",
    "router_dtype": "fp32",
    "moe_router_enable_expert_bias": True,
    "tie_word_embeddings": False,
    "pad_token_id": 38,
    "mask_token_id": 40,
    "block_size": 8,
}
SDAR = {
    "model_type": "sdar",
    "architectures": ["SDARForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"},
    "attention_bias": False,
    "vocab_size": 44,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "hidden_act": "silu",
    "max_position_embeddings": 40,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "use_sliding_window": False,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "eos_token_id": 38,
    "mask_token_id": 40,
}
SDAR_MOE = {
    **SDAR,
    "model_type": "sdar_moe",
    "architectures": ["SDARMoeForCausalLM"],
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
CONFIGS = {
    "llada": LLADA,
    "dream": DREAM,
    "llada2": LLADA2,
    "sdar": SDAR,
    "sdar_moe": SDAR_MOE,
    "mdlm": MDLM,
    "bd3lm": BD3LM,
    "sedd": SEDD,
}
BLOCK_LENGTHS = {"llada2": 8, "sdar": 4, "sdar_moe": 4, "bd3lm": 8}
MODELS = tuple(CONFIGS)
MASK = 40
WORDS = 38
SHIFT = {"dream": -1}


def published_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint, listed by hand."""
    kind = "sedd" if "graph" in config else config["model_type"].lower()
    if kind == "llada":
        d, v, f = config["d_model"], config["embedding_size"], config["mlp_hidden_size"]
        kv = d // config["n_heads"] * config["n_kv_heads"]
        shapes = {"model.transformer.wte.weight": (v, d), "model.transformer.ln_f.weight": (d,)}
        for layer in range(config["n_layers"]):
            b = f"model.transformer.blocks.{layer}"
            for norm in ("attn_norm", "ff_norm"):
                shapes[f"{b}.{norm}.weight"] = (d,)
            shapes |= {f"{b}.q_proj.weight": (d, d), f"{b}.attn_out.weight": (d, d)}
            shapes |= {f"{b}.k_proj.weight": (kv, d), f"{b}.v_proj.weight": (kv, d)}
            shapes |= {f"{b}.ff_proj.weight": (f, d), f"{b}.up_proj.weight": (f, d)}
            shapes[f"{b}.ff_out.weight"] = (d, f)
        if not config["weight_tying"]:
            shapes["model.transformer.ff_out.weight"] = (v, d)
        return shapes
    if kind == "dream":
        d, v, f = config["hidden_size"], config["vocab_size"], config["intermediate_size"]
        kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
        shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
        for layer in range(config["num_hidden_layers"]):
            b = f"model.layers.{layer}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{b}.{norm}.weight"] = (d,)
            for part, rows in (("q", d), ("k", kv), ("v", kv)):
                shapes[f"{b}.self_attn.{part}_proj.weight"] = (rows, d)
                shapes[f"{b}.self_attn.{part}_proj.bias"] = (rows,)
            shapes[f"{b}.self_attn.o_proj.weight"] = (d, d)
            shapes |= {f"{b}.mlp.gate_proj.weight": (f, d), f"{b}.mlp.up_proj.weight": (f, d)}
            shapes[f"{b}.mlp.down_proj.weight"] = (d, f)
        shapes["lm_head.weight"] = (v, d)
        return shapes
    if kind in ("llada2_moe", "sdar", "sdar_moe"):
        return _block_causal_shapes(config)
    if kind in ("mdlm", "bd3lm"):
        d, c, blocks, v = (config[k] for k in ("hidden_dim", "cond_dim", "n_blocks", "vocab_size"))
        heads, prefix = config["n_heads"], "backbone."
    else:
        model = config["model"]
        d, c, blocks, heads = (model[k] for k in ("hidden_size", "cond_dim", "n_blocks", "n_heads"))
        v, prefix = config["tokens"] + 1, ""
    shapes = {
        "vocab_embed.embedding": (v, d),
        "sigma_map.mlp.0.weight": (c, 256),
        "sigma_map.mlp.0.bias": (c,),
        "sigma_map.mlp.2.weight": (c, c),
        "sigma_map.mlp.2.bias": (c,),
        "rotary_emb.inv_freq": (d // heads // 2,),
        "output_layer.norm_final.weight": (d,),
        "output_layer.linear.weight": (v, d),
        "output_layer.linear.bias": (v,),
        "output_layer.adaLN_modulation.weight": (2 * d, c),
        "output_layer.adaLN_modulation.bias": (2 * d,),
    }
    for block in range(blocks):
        b = f"blocks.{block}"
        shapes |= {f"{b}.norm1.weight": (d,), f"{b}.norm2.weight": (d,)}
        shapes |= {f"{b}.attn_qkv.weight": (3 * d, d), f"{b}.attn_out.weight": (d, d)}
        shapes |= {f"{b}.mlp.0.weight": (4 * d, d), f"{b}.mlp.0.bias": (4 * d,)}
        shapes |= {f"{b}.mlp.2.weight": (d, 4 * d), f"{b}.mlp.2.bias": (d,)}
        shapes[f"{b}.adaLN_modulation.weight"] = (6 * d, c)
        shapes[f"{b}.adaLN_modulation.bias"] = (6 * d,)
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def _block_causal_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    d, v, width = config["hidden_size"], config["vocab_size"], config["head_dim"]
    queries = width * config["num_attention_heads"]
    keys = width * config["num_key_value_heads"]
    own_names = config["model_type"] == "llada2_moe"
    embeddings = "word_embeddings" if own_names else "embed_tokens"
    shapes = {f"model.{embeddings}.weight": (v, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)

    def swiglu(place: str, inner: int) -> dict[str, tuple[int, ...]]:
        into = {f"{place}.{part}_proj.weight": (inner, d) for part in ("gate", "up")}
        return into | {f"{place}.down_proj.weight": (d, inner)}

    for layer in range(config["num_hidden_layers"]):
        b = f"model.layers.{layer}"
        shapes |= {f"{b}.input_layernorm.weight": (d,)}
        shapes |= {f"{b}.post_attention_layernorm.weight": (d,)}
        if own_names:
            shapes[f"{b}.attention.query_key_value.weight"] = (queries + 2 * keys, d)
            shapes[f"{b}.attention.dense.weight"] = (d, queries)
            shapes[f"{b}.attention.query_layernorm.weight"] = (width,)
            shapes[f"{b}.attention.key_layernorm.weight"] = (width,)
        else:
            for part, rows in (("q", queries), ("k", keys), ("v", keys)):
                shapes[f"{b}.self_attn.{part}_proj.weight"] = (rows, d)
            shapes[f"{b}.self_attn.o_proj.weight"] = (d, queries)
            shapes[f"{b}.self_attn.q_norm.weight"] = (width,)
            shapes[f"{b}.self_attn.k_norm.weight"] = (width,)
        if "num_experts" not in config or layer < config.get("first_k_dense_replace", 0):
            shapes |= swiglu(f"{b}.mlp", config["intermediate_size"])
            continue
        inner = config["moe_intermediate_size"]
        shapes[f"{b}.mlp.gate.weight"] = (config["num_experts"], d)
        for expert in range(config["num_experts"]):
            shapes |= swiglu(f"{b}.mlp.experts.{expert}", inner)
        if own_names:
            shapes[f"{b}.mlp.gate.expert_bias"] = (config["num_experts"],)
            shapes |= swiglu(f"{b}.mlp.shared_experts", inner * config["num_shared_experts"])
    return shapes


def random_state(config: dict, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict:
    """Tensors by published name; matrices large enough to matter, scales around one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in published_shapes(config).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith("inv_freq"):
            width = 2 * shape[0]
            state[name] = 1.0 / 10_000 ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
            continue
        if name.endswith("expert_bias"):
            state[name] = (0.1 * noise).float()
            continue
        is_scale = "norm" in name or "ln_f" in name
        state[name] = (1 + 0.2 * noise if is_scale else 0.25 * noise).to(dtype)
    return state


def write_checkpoint(folder: Path, config: dict, state: dict, shards: int = 3) -> Path:
    """``config.json``, and the tensors in one file or in shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names, weight_map = list(state), {}
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: state[name] for name in names[k::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def save_words(folder: Path, count: int = WORDS, mask: str | None = None) -> None:
    """A word tokenizer with ids 0 … count − 1 beside a checkpoint; ``mask`` has id 40."""
    vocabulary = {f"w{k}": k for k in range(count)}
    if mask is not None:
        vocabulary[mask] = MASK
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(folder)


class ExactNorm(nn.Module):
    """RMS normalisation in the input's own precision, where transformers' is float32."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class ExactRouter(nn.Module):
    """Routing in the input's own precision, where transformers' is float32."""

    def __init__(self, router: nn.Module, config: dict) -> None:
        super().__init__()
        self.config = config
        self.state = {"own.gate.weight": router.weight}
        if config["model_type"] == "llada2_moe":
            self.state["own.gate.expert_bias"] = router.e_score_correction_bias

    def forward(self, h: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        route = llada2_routing if "n_group" in self.config else sdar_routing
        weights = route(h.flatten(0, -2), self.state, "own", self.config)
        chosen = weights.topk(self.config["num_experts_per_tok"], dim=-1)
        return None, chosen.values, chosen.indices


def make_exact(model: nn.Module, config: dict) -> None:
    """Replace what transformers computes in float32 whatever the dtype of the weights."""
    for name, module in list(model.named_modules()):
        owner, _, leaf = name.rpartition(".")
        if type(module).__name__.endswith("RMSNorm"):
            setattr(model.get_submodule(owner), leaf, ExactNorm(module))
        elif type(module).__name__.lower().endswith("topkrouter"):
            setattr(model.get_submodule(owner), leaf, ExactRouter(module, config))


@dataclass
class Published:
    """A loaded tiny model beside its hand-written reference."""

    name: str
    config: dict
    state: dict
    denoiser: AttentionDenoiser

    def embeds(self, ids: Tensor) -> Tensor:
        return self.table[ids]

    @property
    def table(self) -> Tensor:
        names = ("model.transformer.wte.weight", "model.embed_tokens.weight")
        names += ("model.word_embeddings.weight",)
        names += ("backbone.vocab_embed.embedding", "vocab_embed.embedding")
        return next(self.state[name] for name in names if name in self.state)

    def logits(
        self,
        embeds: Tensor,
        valid: Tensor,
        keep: Tensor | None = None,
        sigma: Tensor | None = None,
    ) -> Tensor:
        """(B, L, V) of the reference, −∞ at the mask; row j as the network gives it."""
        if self.name == "llada":
            z = llada_logits(self.state, self.config, embeds, valid, keep)
        elif self.name == "llada2":
            z = llada2_logits(self.state, self.config, embeds, valid, keep)
        elif self.name in ("sdar", "sdar_moe"):
            z = sdar_logits(self.state, self.config, embeds, valid, keep)
        elif self.name == "dream":
            z = dream_logits(self.state, self.config, embeds, valid, keep)
        else:
            sigma = torch.zeros(len(embeds)) if sigma is None else sigma
            blocks = self.config.get("block_size")
            z = dit_logits(self.state, 4, embeds, sigma, valid, keep, blocks)
        return z.index_fill(-1, torch.tensor([MASK]), -torch.inf)


def load_published(
    name: str, folder: Path, mesh: DeviceMesh | None = None, **changes: object
) -> Published:
    """Writes a tiny checkpoint in float64 and loads it, with exact norms."""
    config = {**CONFIGS[name], **changes}
    state = random_state(config)
    checkpoint = Checkpoint.open(write_checkpoint(folder, config, state))
    blueprint = blueprint_of(checkpoint.config)
    assert blueprint is not None
    denoiser = build_published(checkpoint, blueprint, MASK, mesh=mesh)
    make_exact(denoiser.model, config)
    return Published(name, config, state, denoiser)
