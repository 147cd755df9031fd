"""The public function of the statistics of a linear head."""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._arguments import (
    require_alike,
    require_constant,
    require_floating,
    require_positive,
    require_shape,
    require_tensor,
)
from boe_kernels._dispatch import decide, note_path
from boe_kernels.entropy.api import EntropyStats, check_suppressed_ids
from boe_kernels.head_entropy import op
from boe_kernels.head_entropy.reference import reference

BLOCK_ELEMENTS = 1 << 24
"""Default bound on the logits held at once: 64 MiB in float32."""


def linear_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    suppressed_ids: Tensor | None = None,
    block_elements: int = BLOCK_ELEMENTS,
    backend: str = "auto",
) -> EntropyStats:
    """Vocabulary statistics of z = W h + b without ever holding all of z.

    The gradient of the entropy reaches ``hidden`` only: dH/dh = −Cov_p(z, W). The head is
    a constant, and asking for its gradient is refused.

    Args:
        hidden: (..., D), float64/float32/bfloat16/float16.
        weight: (V, D) of hidden's dtype. bias: (V,) or ``None``.
        suppressed_ids: int64 (K,), ids that are to have probability 0.
        block_elements: at most this many logits are held at once, but at least one row.
        backend: "auto", "triton", "native" (on the CPU), "library" or "reference" (holds all
            logits, differentiable twice).

    Returns:
        EntropyStats, with the leading shape of ``hidden``.

    Raises:
        TypeError, ValueError, IndexError: an argument is not as above, or ``weight`` or
            ``bias`` requires a gradient.
    """
    require_tensor("hidden", hidden)
    require_floating("hidden", hidden)
    if hidden.dim() == 0:
        raise ValueError("hidden must have at least 1 dimension, got a scalar")
    require_tensor("weight", weight, rank=2)
    require_alike("weight", weight, "hidden", hidden)
    vocabulary, width = weight.shape
    if vocabulary == 0 or width != hidden.shape[-1]:
        raise ValueError(
            f"weight must have shape (V, D) with V > 0 and D = {hidden.shape[-1]}, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None:
        require_tensor("bias", bias)
        require_alike("bias", bias, "hidden", hidden)
        require_shape("bias", bias, (vocabulary,), "(V,)")
    require_positive(block_elements=block_elements)
    check_suppressed_ids(suppressed_ids, vocabulary, hidden)
    path = decide(op.NAME, backend, hidden.device, hidden.dtype).path
    rows = hidden.reshape(-1, width)
    if path == "reference":
        note_path(op.NAME, path)
        stats = reference(rows, weight, bias, suppressed_ids)
    else:
        require_constant(op.NAME, weight=weight, bias=bias)
        with_gradient = torch.is_grad_enabled() and hidden.requires_grad
        stats = op.forward_op(
            rows, weight, bias, suppressed_ids, block_elements, with_gradient, path
        )[:5]
    return EntropyStats(*(value.reshape(hidden.shape[:-1]) for value in stats))
