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


# Two maxima over chunk maxima are cheaper than one max with indices over the whole row,
# which PyTorch does not vectorise on the CPU.
_CHUNK = 64


def _top_two(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest value, the second largest, and the lowest index of the largest, (N, 1)."""
    chunks = z.shape[-1] // _CHUNK
    tail = chunks * _CHUNK
    maxima = z[:, :tail].unflatten(-1, (chunks, _CHUNK)).amax(dim=-1)
    candidates = torch.cat([maxima, z[:, tail:]], dim=-1)
    peak, winner = candidates.max(dim=-1, keepdim=True)
    in_chunk = winner < chunks
    index = torch.where(
        in_chunk, winner * _CHUNK + torch.arange(_CHUNK, device=z.device), winner - chunks + tail
    )
    members = z.gather(-1, index)
    first = members.argmax(dim=-1, keepdim=True)
    beside = members.scatter(-1, first, -torch.inf).amax(dim=-1, keepdim=True)
    beside = torch.where(in_chunk, beside, -torch.inf)
    elsewhere = candidates.scatter(-1, winner, -torch.inf).amax(dim=-1, keepdim=True)
    return peak, torch.maximum(beside, elsewhere), index.gather(-1, first)


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
        z = logits[block].to(dtype, copy=suppressed_ids is not None)
        if suppressed_ids is not None:
            z.index_fill_(-1, suppressed_ids, -torch.inf)
        peak, second, where = _top_two(z)
        # Clamping keeps 0·∞ out of the sum and leaves NaN alone.
        distance = torch.sub(z, peak).clamp_min_(_floor(dtype))
        weight = distance.exp()
        total = weight.sum(dim=-1, keepdim=True)
        weighted = distance.mul_(weight).sum(dim=-1, keepdim=True)
        log_total = total.log()
        value = log_total - weighted / total
        # A row without any possible id has no distribution.
        impossible = peak == -torch.inf
        entropy[block] = value.masked_fill_(impossible, torch.nan).squeeze(-1)
        lse[block] = (peak + log_total).masked_fill_(impossible, torch.nan).squeeze(-1)
        top1[block] = total.reciprocal().masked_fill_(impossible, torch.nan).squeeze(-1)
        runner_up = (second - peak).clamp_min_(_floor(dtype)).exp()
        top2[block] = (runner_up / total).masked_fill_(impossible, torch.nan).squeeze(-1)
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
        z = logits[block]
        if suppressed_ids is not None:
            z = z.index_fill(-1, suppressed_ids, -torch.inf)
        log_p = torch.sub(z, lse[block].unsqueeze(-1)).clamp_min_(_floor(dtype))
        weight = log_p.exp().mul_(-grad_entropy[block].to(dtype).unsqueeze(-1))
        log_p.add_(entropy[block].unsqueeze(-1))
        if grad.dtype == dtype:
            torch.mul(log_p, weight, out=grad[block])
        else:
            grad[block] = log_p.mul_(weight)
    return grad
