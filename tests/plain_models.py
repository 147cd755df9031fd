"""The same quantities as the engines compute, by autograd of transformers' own models.

Nothing here calls boe: attention is transformers' SDPA, masks are transformers' masks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tiny_models import MASK_ID, tiny_model
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from boe.canvas import Canvas

_edit: list[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = []
_edit_output: list[Callable[[Tensor], Tensor]] = []


def _edited_attention(module, query, key, value, attention_mask, **options):
    for edit in _edit:
        key, value = edit(key, value)
    out, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    for edit in _edit_output:
        out = edit(out)
    return out, weights


AttentionInterface.register("edited_sdpa", _edited_attention)
AttentionMaskInterface.register("edited_sdpa", sdpa_mask)


def plain_model(name: str, layers: int = 3) -> PreTrainedModel:
    """The weights of ``tiny_model(name)`` with transformers' SDPA attention."""
    model = tiny_model(name, layers)
    model.set_attn_implementation("sdpa")
    return model


def plain_logits(model: PreTrainedModel, embeds: Tensor, canvas: Canvas) -> Tensor:
    """(B, L, V) with −inf at the mask, from input embeddings."""
    logits = model(inputs_embeds=embeds, attention_mask=canvas.valid.long()).logits
    return logits.index_fill(-1, torch.tensor([MASK_ID]), -torch.inf)


def entropies(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(dim=-1)
    return -(logp.exp() * logp.clamp_min(-1e30)).sum(dim=-1)


def summed_entropy(
    model: PreTrainedModel, embeds: Tensor, canvas: Canvas, probes: Tensor, shift: int = 0
) -> Tensor:
    """Σ of the entropies predicted for positions ``probes`` (B, S), −1 for padding; (B,)."""
    rows = (probes.clamp_min(0) + shift).clamp_min(0)
    entropy = entropies(plain_logits(model, embeds, canvas)).gather(1, rows)
    return torch.where(probes >= 0, entropy, 0.0).sum(dim=1)


def soft_writes(
    model: PreTrainedModel, canvas: Canvas, candidates: Tensor, shift: int = 0
) -> tuple[Tensor, Tensor]:
    """Embeddings of the canvas (B, L, D) and Δe (B, C, D), zero at padding."""
    table = model.get_input_embeddings().weight
    embeds = table[canvas.ids]
    p = plain_logits(model, embeds, canvas).softmax(dim=-1)
    rows = (candidates.clamp_min(0) + shift).clamp_min(0)
    p = p.gather(1, rows.unsqueeze(-1).expand(-1, -1, p.shape[-1]))
    delta = p @ table - table[MASK_ID]
    return embeds, delta * (candidates >= 0).unsqueeze(-1)


def written(embeds: Tensor, candidates: Tensor, step: Tensor) -> Tensor:
    """``embeds`` with ``step`` (B, C, D) added at the candidates."""
    out = embeds.clone()
    for row, places in enumerate(candidates):
        for k, place in enumerate(places.tolist()):
            if place >= 0:
                out[row, place] += step[row, k]
    return out


def candidate_gradient(
    model: PreTrainedModel,
    canvas: Canvas,
    candidates: Tensor,
    probes: Tensor,
    *,
    alpha: float = 0.0,
    shift: int = 0,
    active: Tensor | None = None,
    freeze_keys_values: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(∂F/∂e_i (B, C, D), Δe, F), each by autograd through the whole model.

    Args:
        active: rows (B, A) at whose attention outputs gradients do not stop (eq. 30).
        freeze_keys_values: no gradient through any key or value.
    """
    embeds, delta = soft_writes(model, canvas, candidates, shift)
    leaf = written(embeds, candidates, alpha * delta).requires_grad_()
    if active is not None:
        keep = torch.zeros(canvas.batch, canvas.length, dtype=torch.bool)
        for row, members in enumerate(active):
            keep[row, members[members >= 0]] = True
        keep = keep[:, :, None, None]
        _edit_output.append(lambda out: torch.where(keep, out, out.detach()))
    if freeze_keys_values:
        _edit.append(lambda key, value: (key.detach(), value.detach()))
    model.set_attn_implementation("edited_sdpa")
    try:
        total = summed_entropy(model, leaf, canvas, probes, shift)
        (grad,) = torch.autograd.grad(total.sum(), leaf)
    finally:
        _edit.clear()
        _edit_output.clear()
        model.set_attn_implementation("sdpa")
    index = candidates.clamp_min(0).unsqueeze(-1).expand(-1, -1, grad.shape[-1])
    gradient = grad.gather(1, index) * (candidates >= 0).unsqueeze(-1)
    return gradient, delta, total.detach()
