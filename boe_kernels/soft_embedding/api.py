"""The public function of the soft write."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from boe_kernels._arguments import (
    finite_number,
    require_alike,
    require_floating,
    require_int,
    require_same_device,
    require_shape,
    require_tensor,
)
from boe_kernels._dispatch import decide, note_path
from boe_kernels._rows import check_rows, pad_rows
from boe_kernels.soft_embedding import op
from boe_kernels.soft_embedding.reference import reference


@overload
def inject_soft_embeddings(
    embeds: Tensor,
    rows: Tensor,
    probs_or_logits: Tensor,
    table: Tensor,
    mask_embed: Tensor,
    alpha: float,
    top_k: int | None = ...,
    *,
    is_logits: bool = ...,
    return_delta: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def inject_soft_embeddings(
    embeds: Tensor,
    rows: Tensor,
    probs_or_logits: Tensor,
    table: Tensor,
    mask_embed: Tensor,
    alpha: float,
    top_k: int | None = ...,
    *,
    is_logits: bool = ...,
    return_delta: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


def inject_soft_embeddings(
    embeds: Tensor,
    rows: Tensor,
    probs_or_logits: Tensor,
    table: Tensor,
    mask_embed: Tensor,
    alpha: float,
    top_k: int | None = None,
    *,
    is_logits: bool = False,
    return_delta: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Blend expected embeddings into a canvas: e_i = e_m + α(Σ_v p_v E_v − e_m).

    Eqs. 10 and 12 of the TABES paper. The write is a constant (eq. 29): gradients reach
    ``embeds`` at the untouched rows and nothing else. To differentiate with respect to
    the written rows, detach the result and make it a leaf.

    Args:
        embeds: (B, L, D), the canvas embeddings; float64/float32/bfloat16/float16.
        rows: the R rows to write: int64 (R,) shared by the batch, or (B, R) padded with
            −1. No row twice; R may be 0.
        probs_or_logits: (B, R, V), the distribution p at each row, any float dtype.
            Logits (``is_logits=True``) may hold −inf.
        table: (V, D), the embedding table E, of embeds' dtype. Multiply a model's
            embedding scale into it and into ``mask_embed``.
        mask_embed: (D,), the mask token's embedding e_m, of embeds' dtype.
        alpha: how far to move from e_m (0) to the expected embedding (1).
        top_k: keep only the k largest p, renormalised; reads k rows of E per position.
        is_logits: softmax ``probs_or_logits`` first.
        return_delta: also return Δe = Σ_v p_v E_v − e_m, (B, R, D), zero at padding.
        backend: "auto", "triton", "triton_fused" (without ``top_k``: the product with E, the
            softmax and the write in one Triton kernel; by name until a measurement on the
            GPU at hand has it preferred, for V and D that 16 divides), "native" (with
            ``top_k``, on the CPU), "library" or "reference".

    Returns:
        (B, L, D), a new tensor; with ``return_delta`` a pair.

    Raises:
        TypeError, ValueError, IndexError: an argument is not as above.
    """
    require_tensor("embeds", embeds, rank=3)
    require_floating("embeds", embeds)
    batch, length, width = embeds.shape
    check_rows("rows", rows, batch, length, like=embeds, allow_mask=False)
    count = rows.shape[-1]
    require_tensor("table", table, rank=2)
    require_alike("table", table, "embeds", embeds)
    vocabulary = table.shape[0]
    require_shape("table", table, (vocabulary, width), "(V, D)")
    require_tensor("probs_or_logits", probs_or_logits)
    require_floating("probs_or_logits", probs_or_logits)
    require_same_device("probs_or_logits", probs_or_logits, "embeds", embeds)
    require_shape("probs_or_logits", probs_or_logits, (batch, count, vocabulary), "(B, R, V)")
    require_tensor("mask_embed", mask_embed)
    require_alike("mask_embed", mask_embed, "embeds", embeds)
    require_shape("mask_embed", mask_embed, (width,), "(D,)")
    if top_k is not None:
        require_int("top_k", top_k)
        if not 1 <= top_k <= vocabulary:
            raise ValueError(f"top_k must be between 1 and V = {vocabulary}, got {top_k}")
    form = op.form(top_k)
    path = decide(form, backend, embeds.device, embeds.dtype, table=(vocabulary, width)).path
    inputs = (
        embeds,
        pad_rows(rows),
        probs_or_logits,
        table,
        mask_embed,
        finite_number("alpha", alpha),
        top_k,
        is_logits,
    )
    if path == "reference":
        note_path(form, path)
        injected, delta = reference(*inputs)
    else:
        injected, delta = op.forward_op(*inputs, path)
    return (injected, delta) if return_delta else injected
