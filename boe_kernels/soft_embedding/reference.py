"""The definition of the soft write (eqs. 10, 12 and 29 of the TABES paper)."""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._autocast import in_given_dtypes
from boe_kernels._rows import spread_by_selection
from boe_kernels.entropy.reference import accumulation_dtype


def probabilities(values: Tensor, is_logits: bool, top_k: int | None) -> Tensor:
    """The write distribution, in float32 (float64): softmaxed, cut to top_k, renormalised."""
    p = values.to(accumulation_dtype(values.dtype))
    if is_logits:
        p = p.softmax(dim=-1)
    if top_k is None:
        return p
    kept = p.topk(top_k, dim=-1)
    kept_mass = kept.values / kept.values.sum(dim=-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, kept.indices, kept_mass)


@in_given_dtypes
def reference(
    embeds: Tensor,
    rows: Tensor,
    probs_or_logits: Tensor,
    table: Tensor,
    mask_embed: Tensor,
    alpha: float,
    top_k: int | None,
    is_logits: bool,
) -> tuple[Tensor, Tensor]:
    """The canvas with e_m + α·Δe at the rows, and Δe = Σ_v p_v E_v − e_m (B, R, D).

    Args:
        rows: int64 (B or 1, R); −1 for padding, whose Δe is zero.
    """
    batch, length, _ = embeds.shape
    rows = rows.expand(batch, -1)
    p = probabilities(probs_or_logits.detach(), is_logits, top_k)
    base = mask_embed.detach().to(p.dtype)
    delta = torch.where((rows >= 0).unsqueeze(-1), p @ table.detach().to(p.dtype) - base, 0.0)
    written = (base + alpha * delta).to(embeds.dtype)
    spread, is_written = spread_by_selection(written.unsqueeze(1), rows, length)
    injected = torch.where(is_written.squeeze(1), spread.squeeze(1), embeds)
    return injected, delta.to(embeds.dtype)
