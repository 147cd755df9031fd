"""Statistics of a linear head, one block of logits at a time.

Where a gradient will be wanted it is made together with the statistics, while the block
of logits is at hand: dH/dh = Σ_v (dH/dz_v) W_v = −Cov_p(z, W). Two matrix products a
block, against three when the backward has to make the logits again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._products import linear
from boe_kernels.entropy import library as entropy_library
from boe_kernels.entropy.reference import accumulation_dtype


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
    dtype = accumulation_dtype(hidden.dtype)
    step = max(1, block_elements // weight.shape[0])
    entropy, lse, top1, top2 = (hidden.new_empty(rows, dtype=dtype) for _ in range(4))
    argmax = hidden.new_empty(rows, dtype=torch.int64)
    gradient = torch.empty_like(hidden) if with_gradient else hidden.new_empty(0)
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        logits = linear(hidden[block], weight, bias)
        stats = entropy_library.forward(logits, suppressed_ids)
        for whole, part in zip((entropy, lse, top1, top2, argmax), stats, strict=True):
            whole[block] = part
        if with_gradient:
            ones = torch.ones_like(stats[0])
            grad_logits = entropy_library.backward(ones, logits, stats[0], stats[1], suppressed_ids)
            gradient[block] = linear(grad_logits, weight.t())
    return entropy, lse, top1, top2, argmax, gradient
