"""Statistics of a linear head, one block of logits at a time, its gradient in its place.

dH/dz takes the place of the logits as soon as these have been read, and dH/dh = −Cov_p(z, W)
is made of it by a second product: the block is all that is held.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from boe_kernels._products import linear

Stats = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
WriteStats = Callable[[Stats, Tensor, Tensor | None, Tensor | None], None]


def forward_in_place(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    suppressed_ids: Tensor | None,
    block_elements: int,
    with_gradient: bool,
    stats: Stats,
    write_stats: WriteStats,
    *,
    one_buffer: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The five statistics and dH/dh (N, D), which is empty unless ``with_gradient``.

    Args:
        block_elements: logits of a block; at least one row is taken.
        stats: the results, uninitialised.
        write_stats: fills its first argument with the statistics of the logits, given the
            suppressed ids, and its last, unless that is ``None``, with dH/dz.
        one_buffer: all blocks are written to one buffer by PyTorch's product, which a GPU's
            allocator and graphs prefer. Else each is what ``linear`` makes, the quicker
            product on a CPU, which writes to memory of its own.
    """
    rows, vocabulary = hidden.shape[0], weight.shape[0]
    step = min(max(1, block_elements // vocabulary), max(1, rows))
    buffer = hidden.new_empty(min(step, rows), vocabulary) if one_buffer else None
    gradient = torch.empty_like(hidden) if with_gradient else hidden.new_empty(0)
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        if buffer is None:
            logits = linear(hidden[block], weight, bias)
        else:
            logits = buffer[: block.stop - start]
            if bias is None:
                torch.mm(hidden[block], weight.T, out=logits)
            else:
                torch.addmm(bias, hidden[block], weight.T, out=logits)
        entropy, lse, top1, top2, argmax = (whole[block] for whole in stats)
        into = logits if with_gradient else None
        write_stats((entropy, lse, top1, top2, argmax), logits, suppressed_ids, into)
        if with_gradient and buffer is None:
            gradient[block] = linear(logits, weight.t())
        elif with_gradient:
            torch.mm(logits, weight, out=gradient[block])
        # Or it would still be there while the next one is made.
        del logits, into
    return *stats, gradient
