"""A model that the library has never seen: written by hand, in one file, its own way.

Early-bound attention, an embedding table that is a bare parameter, grouped heads through
``enable_gqa``, a gated feed-forward with no module, learned places, tuple output. ``variant``
switches on what cannot be intercepted or proven.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu, softmax

VOCABULARY, WIDTH, HEADS, KEY_HEADS = 23, 16, 4, 2
MASK = 0


class ForeignModel(nn.Module):
    def __init__(self, variant: str = "plain", layers: int = 3) -> None:
        super().__init__()
        self.variant = variant
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> nn.Parameter:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(0.3 * values)

        self.words, self.places = random(VOCABULARY, WIDTH), random(64, WIDTH)
        inner = WIDTH // HEADS * (HEADS + 2 * KEY_HEADS)
        self.qkv = nn.ParameterList(random(inner, WIDTH) for _ in range(layers))
        self.out = nn.ParameterList(random(WIDTH, WIDTH) for _ in range(layers))
        self.up = nn.ParameterList(random(2 * WIDTH, WIDTH) for _ in range(layers))
        self.down = nn.ParameterList(random(WIDTH, WIDTH) for _ in range(layers))
        self.last = random(VOCABULARY, WIDTH)
        self.bias = random(1, HEADS, 1, 1)
        if variant == "module":
            self.whole = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, str]:
        x = self.words[ids] + self.places[: ids.shape[1]]
        if self.variant == "twice":
            x = x + self.words[ids]
        for qkv, out, up, down in zip(self.qkv, self.out, self.up, self.down, strict=True):
            x = x + linear(self.attend(linear(_norm(x), qkv), attention_mask), out)
            gate, value = linear(_norm(x), up).chunk(2, dim=-1)
            x = x + linear(silu(gate) * value, down)
            if self.variant == "convolution":
                x = x + 0.1 * x.roll(1, dims=1)
        if self.variant == "module":
            x = x + self.whole(x, x, x, need_weights=False)[0]
        return linear(_norm(x), self.last), "something else"

    def attend(self, projected: Tensor, attention_mask: Tensor | None) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
            for part in projected.split([WIDTH, WIDTH // 2, WIDTH // 2], dim=-1)
        )
        options: dict = {"enable_gqa": True}
        if attention_mask is not None and self.variant != "unmasked":
            visible = attention_mask[:, None, None, :]
            options["attn_mask"] = visible
            if self.variant == "additive":
                hidden = torch.zeros(visible.shape, dtype=q.dtype)
                options["attn_mask"] = hidden.masked_fill(~visible, -torch.inf)
        length = q.shape[2]
        if self.variant == "causal":
            options["is_causal"] = True
        elif self.variant == "dropout":
            options["dropout_p"] = 0.1
        elif self.variant == "bias":
            options["attn_mask"] = self.bias.expand(-1, -1, length, length)
        elif self.variant == "trained bias":
            options["attn_mask"] = (0.0 * self.bias * q.mean()).expand(-1, -1, length, length)
        elif self.variant == "window":
            far = torch.arange(length)[:, None] - torch.arange(length)
            options["attn_mask"] = far.abs() <= 2
        elif self.variant == "manual":
            k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
            scores = q @ k.transpose(-2, -1) / 2.0
            return (softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)
        elif self.variant == "prefix":
            k, v = (torch.cat([x, x[:, :, :1]], dim=2) for x in (k, v))
        elif self.variant == "ungrouped":
            options["enable_gqa"] = False
            k, v = k[:, :1], v[:, :1]
        out = scaled_dot_product_attention(q, k, v, **options)
        return out.transpose(1, 2).flatten(2)


def _norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
