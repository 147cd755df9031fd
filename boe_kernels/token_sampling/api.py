"""The public function of the token draw."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from boe_kernels._arguments import (
    require_floating,
    require_number,
    require_same_device,
    require_shape,
    require_tensor,
)
from boe_kernels._dispatch import decide, note_path
from boe_kernels.entropy.api import EntropyStats, check_suppressed_ids
from boe_kernels.token_sampling import op
from boe_kernels.token_sampling.reference import reference

LEAST_TEMPERATURE = 1e-6
"""Below it z/τ leaves the range of float32, and the draw is the argmax anyway."""


class TokenSample(NamedTuple):
    """A token drawn for every row of logits, and the statistics of its distribution."""

    token: Tensor
    """int64, drawn from softmax(z/τ)."""
    stats: EntropyStats
    """Of softmax(z), untempered; not differentiable here."""


def sample_tokens(
    logits: Tensor,
    seeds: Tensor,
    *,
    temperature: float = 1.0,
    suppressed_ids: Tensor | None = None,
    backend: str = "auto",
) -> TokenSample:
    """Draw a token per row by the Gumbel maximum: argmax_v (z_v/τ + g_v).

    The noise g_v depends on the row's seed and on v alone (``noise``): the same seed and
    logits give the same token on every path and device (unless two scores agree to float32
    rounding), and a row's draw does not depend on the rows beside it. A seed gives the same
    noise every time: draw with fresh seeds at every step of a decoding.

    Args:
        logits: (..., V), float64/float32/bfloat16/float16. −inf marks impossible ids.
        seeds: int64, of the logits' shape without V; any values.
        temperature: τ, at least ``LEAST_TEMPERATURE``; the limit τ → 0 is ``stats.argmax``.
        suppressed_ids: int64 (K,), ids that are never drawn and have probability 0.
        backend: "auto", "triton", "library" or "reference".

    Returns:
        TokenSample. Where a row holds NaN or +inf, or no possible id, the statistics are
        NaN and the token is meaningless.

    Raises:
        TypeError, ValueError, IndexError: an argument is not as above, or V is 0.
    """
    require_tensor("logits", logits)
    require_floating("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(
            f"logits must have a vocabulary dimension of at least 1, got {tuple(logits.shape)}"
        )
    require_tensor("seeds", seeds)
    if seeds.dtype != torch.int64:
        raise TypeError(f"seeds must be int64, got {seeds.dtype}")
    require_same_device("seeds", seeds, "logits", logits)
    require_shape("seeds", seeds, tuple(logits.shape[:-1]), "that of logits without V")
    require_number("temperature", temperature)
    if not LEAST_TEMPERATURE <= temperature < math.inf:
        raise ValueError(
            f"temperature must be finite and at least {LEAST_TEMPERATURE:g}, got {temperature}"
        )
    check_suppressed_ids(suppressed_ids, logits.shape[-1], logits)
    path = decide(op.NAME, backend, logits.device, logits.dtype).path
    inputs = (
        logits.detach().reshape(-1, logits.shape[-1]),
        seeds.reshape(-1),
        float(temperature),
        suppressed_ids,
    )
    if path == "reference":
        note_path(op.NAME, path)
        results = reference(*inputs)
    else:
        results = op.forward_op(*inputs, path)
    *stats, token = (value.reshape(logits.shape[:-1]) for value in results)
    return TokenSample(token, EntropyStats(*stats))
