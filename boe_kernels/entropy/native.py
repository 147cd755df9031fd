"""Vocabulary statistics by the native CPU kernels (``csrc/vocabulary.cpp``).

The forward reads the logits once and the gradient reads and writes them once; nothing of
the logits' size is held besides the gradient. Sums are in float32 within blocks of 4096
ids and in float64 across them, in an order that does not depend on the number of threads.
Logits whose last dimension is not contiguous are copied first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._native import DTYPES
from boe_kernels._native_library import library

Stats = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def forward(logits: Tensor, suppressed_ids: Tensor | None) -> Stats:
    stats = empty_stats(logits)
    write_stats(stats, logits, suppressed_ids)
    return stats


def backward(
    grad_entropy: Tensor,
    logits: Tensor,
    entropy: Tensor,
    lse: Tensor,
    suppressed_ids: Tensor | None,
) -> Tensor:
    """Gradient of the entropy with respect to the logits, in the logits' dtype."""
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
    logits, ids = _unit_stride(logits), _ascending(suppressed_ids)
    per_row = [x.to(torch.float32).contiguous() for x in (grad_entropy, entropy, lse)]
    library().run(
        "boe_entropy_gradient",
        *_rows_of(logits, ids),
        *(x.data_ptr() for x in per_row),
        grad.data_ptr(),
        grad.shape[1],
    )
    return grad


def empty_stats(rows: Tensor) -> Stats:
    """Room for the statistics of one distribution per row of ``rows``."""
    floats = (rows.new_empty(rows.shape[0], dtype=torch.float32) for _ in range(4))
    entropy, lse, top1, top2 = floats
    return entropy, lse, top1, top2, rows.new_empty(rows.shape[0], dtype=torch.int64)


def write_stats(
    stats: Stats, logits: Tensor, suppressed_ids: Tensor | None, gradient: Tensor | None = None
) -> None:
    """Fill contiguous ``stats`` and, where given, ``gradient`` with dH/dz.

    ``gradient`` is contiguous, of the logits' shape and dtype, and may be the logits
    themselves: each row's gradient is written while the row is in the cache.
    """
    logits, ids = _unit_stride(logits), _ascending(suppressed_ids)
    library().run(
        "boe_vocabulary_statistics",
        *_rows_of(logits, ids),
        *(x.data_ptr() for x in stats),
        0 if gradient is None else gradient.data_ptr(),
        logits.shape[1],
    )


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _ascending(ids: Tensor | None) -> Tensor | None:
    return None if ids is None else ids.sort().values


def _rows_of(logits: Tensor, ids: Tensor | None) -> tuple[int, ...]:
    """The kernels' arguments for rows of logits; the caller keeps both tensors alive."""
    return (
        DTYPES[logits.dtype],
        logits.data_ptr(),
        *logits.shape,
        logits.stride(0),
        0 if ids is None else ids.data_ptr(),
        0 if ids is None else ids.numel(),
    )
