"""The diffusion transformer of MDLM, BD3-LM and SEDD: rotary attention, adaLN conditioning.

Parameters have the names of the published checkpoints (the ``DIT`` and ``SEDD`` modules of
kuleshov-group/mdlm, kuleshov-group/bd3lms and
louaaron/Score-Entropy-Discrete-Diffusion). Attention is computed
by the :class:`AttentionMode` that a forward is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, silu

from boe.denoisers.attention_modes import AttentionMode, LayerCall

_FREQUENCIES = 256
_LONGEST_PERIOD = 10_000
_ROTARY_BASE = 10_000


@dataclass(frozen=True)
class DiTConfig:
    """Dimensions of a DiT. ``vocab_size`` counts the mask token, which is the last one."""

    vocab_size: int
    hidden_size: int = 768
    cond_dim: int = 128
    n_blocks: int = 12
    n_heads: int = 12
    length: int = 1024
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.n_heads or (self.hidden_size // self.n_heads) % 2:
            raise ValueError(
                f"hidden_size must be an even multiple of n_heads, got {self.hidden_size} and "
                f"{self.n_heads}"
            )


class DiT(nn.Module):
    """The network from embeddings to the head's input; the head is ``output_layer.linear``."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.vocab_embed = _VocabularyEmbedding(config.vocab_size, width)
        self.sigma_map = _NoiseEmbedding(config.cond_dim)
        self.rotary_emb = _Rotary(width // config.n_heads)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_blocks))
        self.output_layer = _OutputLayer(config)

    def forward(
        self,
        embeds: Tensor,
        sigma: Tensor,
        mode: AttentionMode,
        position_ids: Tensor,
        key_padding_mask: Tensor | None = None,
        block_size: int | None = None,
    ) -> Tensor:
        """The head's input (B, N, D).

        Args:
            embeds: (B, N, D).
            sigma: (B,), total noise.
            position_ids: int64 (B, N), 0-based.
            key_padding_mask: bool (B, N), True at real tokens.
            block_size: length of the blocks of block-causal attention, or ``None``.
        """
        condition = silu(self.sigma_map(sigma)).unsqueeze(1)
        rotation = self.rotary_emb(position_ids, embeds.dtype)
        x = embeds
        for block in self.blocks:
            x = block(x, condition, rotation, mode, key_padding_mask, block_size)
        return self.output_layer(x, condition)


class _VocabularyEmbedding(nn.Module):
    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocabulary, width))
        nn.init.normal_(self.embedding, std=0.02)


class _Norm(nn.Module):
    """Layer normalisation with a scale and no shift, in float32 at least."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return layer_norm(wide, self.weight.shape).to(x.dtype) * self.weight


class _NoiseEmbedding(nn.Module):
    """σ as sines and cosines, through two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma: Tensor) -> Tensor:
        half = _FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=sigma.device) / half
        angles = sigma.float().unsqueeze(1) * torch.exp(-math.log(_LONGEST_PERIOD) * steps)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(waves.to(next(self.parameters()).dtype))


class _Rotary(nn.Module):
    """Rotary position embedding, halves rotated against each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Computed on the CPU even where the rest is built without memory.
        steps = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
        self.inv_freq = nn.Buffer(1.0 / _ROTARY_BASE**steps)

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin, (B, 1, N, head width)."""
        frequencies = self.inv_freq.to(position_ids.device, torch.float32)
        angles = position_ids.unsqueeze(-1).float() * frequencies
        angles = torch.cat([angles, angles], dim=-1).unsqueeze(1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class _Block(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.mlp_ratio * config.hidden_size
        self.heads = config.n_heads
        self.norm1 = _Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = _Norm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), _TanhGelu(), nn.Linear(inner, width))
        self.adaLN_modulation = nn.Linear(config.cond_dim, 6 * width)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        rotation: tuple[Tensor, Tensor],
        mode: AttentionMode,
        key_padding_mask: Tensor | None,
        block_size: int | None,
    ) -> Tensor:
        modulation = self.adaLN_modulation(condition).chunk(6, dim=-1)
        shift_attention, scale_attention, gate_attention = modulation[:3]
        shift_mlp, scale_mlp, gate_mlp = modulation[3:]
        h = self.norm1(x) * (1 + scale_attention) + shift_attention
        q, k, v = self.attn_qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, *rotation), _rotate(k, *rotation)
        scale = q.shape[-1] ** -0.5
        out = mode.attend(LayerCall(q, k, v, key_padding_mask, scale, block_size=block_size))
        x = x + gate_attention * self.attn_out(out.transpose(1, 2).flatten(2))
        h = self.norm2(x) * (1 + scale_mlp) + shift_mlp
        return x + gate_mlp * self.mlp(h)


class _TanhGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return gelu(x, approximate="tanh")


class _OutputLayer(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = _Norm(config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.vocab_size)
        self.adaLN_modulation = nn.Linear(config.cond_dim, 2 * config.hidden_size)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """The input of ``linear``, which callers apply to the rows that they want."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.norm_final(x) * (1 + scale) + shift


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
