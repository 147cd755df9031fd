"""Soft writes from PyTorch's own kernels.

Dense form: one matrix product with the embedding table. Top-k form: k rows of the table
are gathered and summed per position. The canvas is copied once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from boe_kernels._products import linear
from boe_kernels._rows import replace_rows
from boe_kernels.entropy.reference import accumulation_dtype


def forward(
    embeds: Tensor,
    rows: Tensor,
    probs_or_logits: Tensor,
    table: Tensor,
    mask_embed: Tensor,
    alpha: float,
    top_k: int | None,
    is_logits: bool,
) -> tuple[Tensor, Tensor]:
    """The injected canvas and Δe."""
    expected = _expected_embeddings(probs_or_logits, table, top_k, is_logits)
    base = mask_embed.to(expected.dtype)
    delta = torch.where((rows >= 0).unsqueeze(-1), expected - base, 0.0)
    written = (base + alpha * delta).to(embeds.dtype)
    return _with_rows(embeds, rows, written), delta.to(embeds.dtype)


def backward(dout: Tensor, rows: Tensor) -> Tensor:
    """The gradient of the canvas: dout, with zeros at the written rows."""
    batch, _, width = dout.shape
    return _with_rows(dout, rows, dout.new_zeros(batch, rows.shape[1], width))


def _with_rows(canvas: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return replace_rows(canvas.unsqueeze(1), rows, values.unsqueeze(1)).squeeze(1)


def _expected_embeddings(
    values: Tensor, table: Tensor, top_k: int | None, is_logits: bool
) -> Tensor:
    """Σ_v p_v E_v (B, R, D), in float32 (float64 for float64)."""
    dtype = accumulation_dtype(table.dtype)
    p = values.to(dtype)
    if top_k is None:
        p = p.softmax(dim=-1) if is_logits else p
        return linear(p.to(table.dtype), table.t()).to(dtype)
    kept = p.topk(top_k, dim=-1)
    weights = kept.values.softmax(dim=-1) if is_logits else kept.values
    weights = weights / weights.sum(dim=-1, keepdim=True)
    bags = embedding_bag(
        kept.indices.reshape(-1, top_k),
        table,
        per_sample_weights=weights.reshape(-1, top_k).to(table.dtype),
        mode="sum",
    )
    return bags.reshape(*values.shape[:-1], table.shape[1]).to(dtype)
