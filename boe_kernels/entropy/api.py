"""The public function of the vocabulary statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from boe_kernels._arguments import (
    require_floating,
    require_indices,
    require_same_device,
    require_tensor,
)
from boe_kernels._dispatch import decide, note_path
from boe_kernels.entropy import op
from boe_kernels.entropy.reference import reference


class EntropyStats(NamedTuple):
    """Statistics of one categorical distribution per row of logits.

    All have the logits' shape without the vocabulary dimension; floats are float32
    (float64 for float64 logits). Rows that hold NaN, or no possible id, are NaN.
    """

    entropy: Tensor
    """H = −Σ p ln p in nats; the only differentiable member."""
    logsumexp: Tensor
    """ln Σ exp z."""
    top1: Tensor
    """The largest probability."""
    top2: Tensor
    """The second largest probability, which equals ``top1`` in a tie."""
    argmax: Tensor
    """int64, the id of ``top1``; the lowest such id in a tie."""


def entropy_stats(
    logits: Tensor, *, suppressed_ids: Tensor | None = None, backend: str = "auto"
) -> EntropyStats:
    """Entropy in nats, log-sum-exp, the two top probabilities and the argmax of each row.

    Args:
        logits: (..., V), float64/float32/bfloat16/float16. −inf marks impossible ids.
            Accumulation is in float32 (float64 for float64).
        suppressed_ids: int64 (K,), ids that are to have probability 0, such as the mask
            token; the logits are not modified.
        backend: "auto", "triton", "native" (on the CPU), "library" or "reference" (plain PyTorch,
            differentiable twice).

    Returns:
        EntropyStats; the gradient of the entropy is dH/dz_v = −p_v (ln p_v + H).

    Raises:
        TypeError, ValueError, IndexError: an argument is not as above, or V is 0.
    """
    require_tensor("logits", logits)
    require_floating("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(
            f"logits must have a vocabulary dimension of at least 1, got {tuple(logits.shape)}"
        )
    check_suppressed_ids(suppressed_ids, logits.shape[-1], logits)
    path = decide(op.NAME, backend, logits.device, logits.dtype).path
    rows = logits.reshape(-1, logits.shape[-1])
    if path == "reference":
        note_path(op.NAME, path)
        stats = reference(rows, suppressed_ids)
    else:
        stats = op.forward_op(rows, suppressed_ids, path)
    return EntropyStats(*(value.reshape(logits.shape[:-1]) for value in stats))


def check_suppressed_ids(suppressed_ids: Tensor | None, vocabulary: int, like: Tensor) -> None:
    """Suppressed ids must be int64 (K,) within the vocabulary, on the data's device."""
    if suppressed_ids is None:
        return
    require_tensor("suppressed_ids", suppressed_ids, rank=1)
    if suppressed_ids.dtype != torch.int64:
        raise TypeError(f"suppressed_ids must be int64, got {suppressed_ids.dtype}")
    require_same_device("suppressed_ids", suppressed_ids, "the data", like)
    if torch.compiler.is_compiling():
        return
    require_indices("suppressed_ids", suppressed_ids, "ids", ("V", vocabulary))
