"""The definition of the vocabulary statistics and of the entropy's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._autocast import in_given_dtypes


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64 inputs."""
    return torch.promote_types(dtype, torch.float32)


def suppress(logits: Tensor, suppressed_ids: Tensor | None) -> Tensor:
    """``logits`` with −inf at the suppressed ids."""
    if suppressed_ids is None:
        return logits
    return logits.index_fill(-1, suppressed_ids, -torch.inf)


@in_given_dtypes
def reference(
    logits: Tensor, suppressed_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """H = −Σ p ln p in nats, ln Σ exp z, the two largest p, and the argmax, per row.

    Args:
        logits: (N, V); −inf marks impossible ids.
        suppressed_ids: int64 (K,), ids that get probability 0.
    """
    z = suppress(logits.to(accumulation_dtype(logits.dtype)), suppressed_ids)
    lse = z.logsumexp(dim=-1)
    possible = z > -torch.inf
    # At an impossible id p ln p is 0; the inner where keeps 0·∞ out of the gradient.
    log_p = torch.where(possible, z, 0.0) - lse.unsqueeze(-1)
    p = torch.where(possible, log_p.exp(), 0.0)
    entropy = -(p * log_p).sum(dim=-1)
    # All-impossible rows have no distribution, and a NaN must not pass for -inf.
    invalid = ~possible.any(dim=-1) | (z.isnan() | (z == torch.inf)).any(dim=-1)
    entropy = entropy.masked_fill(invalid, torch.nan)
    argmax = z.argmax(dim=-1)
    top1 = p.gather(-1, argmax.unsqueeze(-1)).squeeze(-1).masked_fill(invalid, torch.nan)
    rest = p.scatter(-1, argmax.unsqueeze(-1), 0.0)
    top2 = rest.amax(dim=-1).masked_fill(invalid, torch.nan)
    lse = lse.detach().masked_fill(invalid, torch.nan)
    return entropy, lse, top1.detach(), top2.detach(), argmax
