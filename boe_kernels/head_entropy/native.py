"""Statistics of a linear head: PyTorch's matrix products around the native CPU kernels.

A block of logits at a time, as in the library path. Statistics and dH/dz are made of it
together, and dH/dz takes the place of the logits: nothing else of their size is held.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._products import linear
from boe_kernels.entropy.native import empty_stats, write_stats


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    suppressed_ids: Tensor | None,
    block_elements: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The five statistics and dH/dh (N, D), which is empty unless ``with_gradient``."""
    rows = hidden.shape[0]
    step = max(1, block_elements // weight.shape[0])
    stats = empty_stats(hidden)
    gradient = torch.empty_like(hidden) if with_gradient else hidden.new_empty(0)
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        logits = linear(hidden[block], weight, bias)
        entropy, lse, top1, top2, argmax = (whole[block] for whole in stats)
        write_stats(
            (entropy, lse, top1, top2, argmax),
            logits,
            suppressed_ids,
            gradient=logits if with_gradient else None,
        )
        if with_gradient:
            gradient[block] = linear(logits, weight.t())
        # Or it would still be there while the next one is made.
        del logits
    return *stats, gradient
