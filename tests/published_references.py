"""The published networks, written by hand from their descriptions, under their own names.

Functions of a checkpoint's tensors and nothing else: no boe, no transformers. Attention is
a softmax over explicit scores. ``keep`` (B, L) names the rows at whose attention outputs
gradients go on (eq. 30); elsewhere they stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, silu

State = dict[str, Tensor]
Logits = Callable[..., Tensor]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rotate_half_split(x: Tensor, positions: Tensor, base: float, full_precision: bool) -> Tensor:
    """x (B, H, L, D): the first half of D is rotated against the second, as published."""
    width = x.shape[-1]
    inverse = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = positions.float()[:, None] * inverse
    angles = torch.cat([angles, angles], dim=-1)
    cos, sin = angles.cos(), angles.sin()
    if full_precision:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        cos, sin = cos.to(wide.dtype), sin.to(wide.dtype)
    else:
        wide, cos, sin = x, cos.to(x.dtype), sin.to(x.dtype)
    first, second = wide[..., : width // 2], wide[..., width // 2 :]
    return (wide * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor,
    keep: Tensor | None,
    block_length: int | None = None,
) -> Tensor:
    """(B, L, H·D) of heads (B, H, L, D); grouped keys and values are repeated.

    With ``block_length``, position i sees the blocks up to its own.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~valid[:, None, None, :], -torch.inf)
    if block_length is not None:
        block = torch.arange(q.shape[2]) // block_length
        scores = scores.masked_fill(block[None, :] > block[:, None], -torch.inf)
    out = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    return out if keep is None else torch.where(keep.unsqueeze(-1), out, out.detach())


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def llada_logits(
    state: State, config: dict, embeds: Tensor, valid: Tensor, keep: Tensor | None = None
) -> Tensor:
    """LLaDA: pre-norm blocks of attention and SwiGLU under OLMo's names."""
    x, positions = embeds, torch.arange(embeds.shape[1])
    eps, base = config["rms_norm_eps"], config["rope_theta"]
    for layer in range(config["n_layers"]):
        w = {
            name.split(".")[-2]: tensor
            for name, tensor in state.items()
            if name.startswith(f"model.transformer.blocks.{layer}.")
        }
        h = rms_norm(x, w["attn_norm"], eps)
        q = heads(h @ w["q_proj"].T, config["n_heads"])
        k = heads(h @ w["k_proj"].T, config["n_kv_heads"])
        v = heads(h @ w["v_proj"].T, config["n_kv_heads"])
        full = config["rope_full_precision"]
        q = rotate_half_split(q, positions, base, full)
        k = rotate_half_split(k, positions, base, full)
        x = x + attention(q, k, v, valid, keep) @ w["attn_out"].T
        h = rms_norm(x, w["ff_norm"], eps)
        x = x + (silu(h @ w["ff_proj"].T) * (h @ w["up_proj"].T)) @ w["ff_out"].T
    x = rms_norm(x, state["model.transformer.ln_f.weight"], eps)
    head = "wte" if config["weight_tying"] else "ff_out"
    return x @ state[f"model.transformer.{head}.weight"].T


def dream_logits(
    state: State, config: dict, embeds: Tensor, valid: Tensor, keep: Tensor | None = None
) -> Tensor:
    """Dream: Qwen2's blocks without the causal mask. Logits as ``forward`` gives them."""
    x, positions = embeds, torch.arange(embeds.shape[1])
    eps, base = config["rms_norm_eps"], config["rope_theta"]
    count = {"q": config["num_attention_heads"]}
    count["k"] = count["v"] = config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        w = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
        h = rms_norm(x, w["input_layernorm.weight"], eps)
        q, k, v = (
            heads(h @ w[f"self_attn.{n}_proj.weight"].T + w[f"self_attn.{n}_proj.bias"], count[n])
            for n in "qkv"
        )
        q = rotate_half_split(q, positions, base, False)
        k = rotate_half_split(k, positions, base, False)
        x = x + attention(q, k, v, valid, keep) @ w["self_attn.o_proj.weight"].T
        h = rms_norm(x, w["post_attention_layernorm.weight"], eps)
        gated = silu(h @ w["mlp.gate_proj.weight"].T) * (h @ w["mlp.up_proj.weight"].T)
        x = x + gated @ w["mlp.down_proj.weight"].T
    return rms_norm(x, state["model.norm.weight"], eps) @ state["lm_head.weight"].T


def rotate_part(x: Tensor, positions: Tensor, base: float, width: int) -> Tensor:
    """The first ``width`` of a head's dimensions rotated, the others as they are."""
    rotated = rotate_half_split(x[..., :width], positions, base, False)
    return torch.cat([rotated, x[..., width:]], dim=-1)


def swiglu(h: Tensor, state: State, prefix: str) -> Tensor:
    gate, up, down = (state[f"{prefix}.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return (silu(h @ gate.T) * (h @ up.T)) @ down.T


def llada2_routing(h: Tensor, state: State, prefix: str, config: dict) -> Tensor:
    """How much of each expert a token gets, (…, experts): sigmoid, best groups, best experts."""
    scores = (h @ state[f"{prefix}.gate.weight"].to(h.dtype).T).sigmoid()
    chosen_by = scores + state[f"{prefix}.gate.expert_bias"].to(h.dtype)
    groups = chosen_by.unflatten(-1, (config["n_group"], -1))
    value = groups.sort(dim=-1, descending=True).values[..., :2].sum(dim=-1)
    rank = value.argsort(dim=-1, descending=True).argsort(dim=-1)
    allowed = (rank < config["topk_group"]).unsqueeze(-1).expand_as(groups).flatten(-2)
    chosen_by = chosen_by.masked_fill(~allowed, -torch.inf)
    rank = chosen_by.argsort(dim=-1, descending=True).argsort(dim=-1)
    weights = scores * (rank < config["num_experts_per_tok"])
    return config["routed_scaling_factor"] * weights / weights.sum(dim=-1, keepdim=True)


def sdar_routing(h: Tensor, state: State, prefix: str, config: dict) -> Tensor:
    """How much of each expert a token gets, (…, experts): softmax, the best ones."""
    scores = (h @ state[f"{prefix}.gate.weight"].to(h.dtype).T).softmax(dim=-1)
    rank = scores.argsort(dim=-1, descending=True).argsort(dim=-1)
    weights = scores * (rank < config["num_experts_per_tok"])
    return weights / weights.sum(dim=-1, keepdim=True) if config["norm_topk_prob"] else weights


def mixture(h: Tensor, weights: Tensor, state: State, prefix: str) -> Tensor:
    """Every expert on every token, weighted; most weights are 0."""
    outs = [swiglu(h, state, f"{prefix}.experts.{e}") for e in range(weights.shape[-1])]
    return (torch.stack(outs, dim=-1) * weights.unsqueeze(-2)).sum(dim=-1)


def llada2_logits(
    state: State, config: dict, embeds: Tensor, valid: Tensor, keep: Tensor | None = None
) -> Tensor:
    """LLaDA2: fused projections, normalised queries and keys, half of a head rotated, a
    dense layer and then experts beside a shared one; attention in blocks of 32."""
    x, positions = embeds, torch.arange(embeds.shape[1])
    eps, base = config["rms_norm_eps"], config["rope_theta"]
    queries, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = int(config["head_dim"] * config["partial_rotary_factor"])
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        w = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
        h = rms_norm(x, w["input_layernorm.weight"], eps)
        fused = heads(h @ w["attention.query_key_value.weight"].T, queries + 2 * groups)
        q, k, v = fused.split([queries, groups, groups], dim=1)
        q = rotate_part(
            rms_norm(q, w["attention.query_layernorm.weight"], eps), positions, base, width
        )
        k = rotate_part(
            rms_norm(k, w["attention.key_layernorm.weight"], eps), positions, base, width
        )
        out = attention(q, k, v, valid, keep, config.get("block_size", 32))
        x = x + out @ w["attention.dense.weight"].T
        h = rms_norm(x, w["post_attention_layernorm.weight"], eps)
        if layer < config["first_k_dense_replace"]:
            x = x + swiglu(h, w, "mlp")
        else:
            weights = llada2_routing(h, w, "mlp", config)
            x = x + mixture(h, weights, w, "mlp") + swiglu(h, w, "mlp.shared_experts")
    return rms_norm(x, state["model.norm.weight"], eps) @ state["lm_head.weight"].T


def sdar_logits(
    state: State, config: dict, embeds: Tensor, valid: Tensor, keep: Tensor | None = None
) -> Tensor:
    """SDAR: Qwen3's blocks, or its mixtures of experts; attention in blocks of 4."""
    x, positions = embeds, torch.arange(embeds.shape[1])
    eps, base = config["rms_norm_eps"], config["rope_theta"]
    count = {"q": config["num_attention_heads"]}
    count["k"] = count["v"] = config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        w = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
        h = rms_norm(x, w["input_layernorm.weight"], eps)
        q, k, v = (heads(h @ w[f"self_attn.{n}_proj.weight"].T, count[n]) for n in "qkv")
        q = rotate_half_split(
            rms_norm(q, w["self_attn.q_norm.weight"], eps), positions, base, False
        )
        k = rotate_half_split(
            rms_norm(k, w["self_attn.k_norm.weight"], eps), positions, base, False
        )
        out = attention(q, k, v, valid, keep, config.get("block_size", 4))
        x = x + out @ w["self_attn.o_proj.weight"].T
        h = rms_norm(x, w["post_attention_layernorm.weight"], eps)
        if "num_experts" in config:
            x = x + mixture(h, sdar_routing(h, w, "mlp", config), w, "mlp")
        else:
            x = x + swiglu(h, w, "mlp")
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return rms_norm(x, state["model.norm.weight"], eps) @ state[f"{head}.weight"].T


def dit_logits(
    state: State,
    count: int,
    embeds: Tensor,
    sigma: Tensor,
    valid: Tensor,
    keep: Tensor | None = None,
    block_length: int | None = None,
) -> Tensor:
    """The network of MDLM and SEDD: adaLN-modulated blocks; σ (B,) as sines and cosines.
    BD3-LM's is MDLM's with attention in blocks."""
    state = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float32) / 128)
    waves = sigma.float()[:, None] * frequencies[None]
    waves = torch.cat([waves.cos(), waves.sin()], dim=-1).to(embeds.dtype)
    c = silu(waves @ state["sigma_map.mlp.0.weight"].T + state["sigma_map.mlp.0.bias"])
    c = silu(c @ state["sigma_map.mlp.2.weight"].T + state["sigma_map.mlp.2.bias"])

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return layer_norm(x, [x.shape[-1]]) * weight

    def modulation(prefix: str, parts: int) -> tuple[Tensor, ...]:
        out = c @ state[f"{prefix}adaLN_modulation.weight"].T
        return (out + state[f"{prefix}adaLN_modulation.bias"])[:, None].chunk(parts, dim=2)

    x, positions = embeds, torch.arange(embeds.shape[1])
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for block in range(blocks):
        prefix = f"blocks.{block}."
        w = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation(prefix, 6)
        h = norm(x, w["norm1.weight"]) * (1 + scale_a) + shift_a
        q, k, v = (heads(part, count) for part in (h @ w["attn_qkv.weight"].T).chunk(3, dim=-1))
        q = rotate_half_split(q, positions, 10_000, False)
        k = rotate_half_split(k, positions, 10_000, False)
        out = attention(q, k, v, valid, keep, block_length)
        x = x + gate_a * (out @ w["attn_out.weight"].T)
        h = norm(x, w["norm2.weight"]) * (1 + scale_m) + shift_m
        h = gelu(h @ w["mlp.0.weight"].T + w["mlp.0.bias"], approximate="tanh")
        x = x + gate_m * (h @ w["mlp.2.weight"].T + w["mlp.2.bias"])
    shift, scale = modulation("output_layer.", 2)
    x = norm(x, state["output_layer.norm_final.weight"]) * (1 + scale) + shift
    return x @ state["output_layer.linear.weight"].T + state["output_layer.linear.bias"]


def sedd_log_score(logits: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
    """SEDD's output from its network's: scaled by σ, and 0 at the current token."""
    scale = torch.where(sigma < 0.5, torch.expm1(sigma), sigma.exp() - 1).log()[:, None, None]
    scaled = logits - scale.to(logits.dtype) - math.log(logits.shape[-1] - 1)
    return scaled.scatter(-1, ids.unsqueeze(-1), 0.0)
