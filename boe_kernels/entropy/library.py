"""Vocabulary statistics from PyTorch's own kernels, a block of rows at a time.

The block is small enough to stay in the processor's cache, so that the several passes
that separate kernels need cost one read of the logits from memory. With m the row's
maximum and d = z − m: S = Σ exp d, ln Σ exp z = m + ln S, H = ln S − Σ d·exp d / S.
The gradient is dH/dz_v = −p_v (ln p_v + H).
"""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels.entropy.reference import accumulation_dtype

_CPU_BLOCK_ELEMENTS = 1 << 18
_DEVICE_BLOCK_ELEMENTS = 1 << 27


def rows_per_block(logits: Tensor) -> int:
    budget = _CPU_BLOCK_ELEMENTS if logits.device.type == "cpu" else _DEVICE_BLOCK_ELEMENTS
    return max(1, budget // max(1, logits.shape[-1]))


def _floor(dtype: torch.dtype) -> float:
    """A distance from the maximum at which exp underflows to exactly zero."""
    return -200.0 if dtype == torch.float32 else -1000.0


def forward(
    logits: Tensor, suppressed_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = logits.shape[0]
    dtype = accumulation_dtype(logits.dtype)
    entropy, lse, top1, top2 = (logits.new_empty(rows, dtype=dtype) for _ in range(4))
    argmax = logits.new_empty(rows, dtype=torch.int64)
    step = rows_per_block(logits)
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        z = logits[block].to(dtype, copy=True)
        if suppressed_ids is not None:
            z.index_fill_(-1, suppressed_ids, -torch.inf)
        peak, where = z.max(dim=-1, keepdim=True)
        # −inf − (−inf) is NaN, which is what a row without any possible id must give;
        # elsewhere clamping keeps 0·∞ out of the sum and leaves NaN alone.
        distance = z.sub_(peak).clamp_min_(_floor(dtype))
        distance = torch.where(peak == -torch.inf, torch.nan, distance)
        weight = distance.exp()
        total = weight.sum(dim=-1, keepdim=True)
        weighted = torch.einsum("rv,rv->r", weight, distance).unsqueeze(-1)
        log_total = total.log()
        entropy[block] = (log_total - weighted / total).squeeze(-1)
        lse[block] = (peak + log_total).squeeze(-1)
        top1[block] = total.reciprocal().squeeze(-1)
        runner_up = weight.scatter_(-1, where, 0.0).amax(dim=-1, keepdim=True)
        top2[block] = (runner_up / total).squeeze(-1)
        argmax[block] = where.squeeze(-1)
    return entropy, lse, top1, top2, argmax


def backward(
    grad_entropy: Tensor,
    logits: Tensor,
    entropy: Tensor,
    lse: Tensor,
    suppressed_ids: Tensor | None,
) -> Tensor:
    """Gradient of the entropy with respect to the logits, in the logits' dtype."""
    rows = logits.shape[0]
    dtype = accumulation_dtype(logits.dtype)
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
    step = rows_per_block(logits)
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        grad[block] = entropy_gradient(
            logits[block].to(dtype, copy=True),
            grad_entropy[block],
            entropy[block],
            lse[block],
            suppressed_ids,
        )
    return grad


def entropy_gradient(
    z: Tensor,
    grad_entropy: Tensor,
    entropy: Tensor,
    lse: Tensor,
    suppressed_ids: Tensor | None,
) -> Tensor:
    """grad · dH/dz of a block of logits, which it overwrites."""
    if suppressed_ids is not None:
        z.index_fill_(-1, suppressed_ids, -torch.inf)
    log_p = z.sub_(lse.unsqueeze(-1)).clamp_min_(_floor(z.dtype))
    weight = log_p.exp().mul_(-grad_entropy.to(z.dtype).unsqueeze(-1))
    return log_p.add_(entropy.unsqueeze(-1)).mul_(weight)
