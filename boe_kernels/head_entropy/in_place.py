"""Statistics of a linear head, one block of logits at a time, its gradient in its place.

The blocks share one buffer, and dH/dz takes the place of the logits as soon as these have
been read: the block is all that is held.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Stats = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
WriteStats = Callable[[Stats, Tensor, Tensor | None, Tensor | None], None]


def forward_in_place(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    suppressed_ids: Tensor | None,
    buffer: Tensor,
    stats: Stats,
    with_gradient: bool,
    write_stats: WriteStats,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The five statistics and dH/dh (N, D), which is empty unless ``with_gradient``.

    Args:
        buffer: (rows per block, V), for the logits.
        stats: the results, uninitialised.
        write_stats: fills its first argument with the statistics of the logits, given the
            suppressed ids, and its last, unless that is ``None``, with dH/dz.
    """
    gradient = torch.empty_like(hidden) if with_gradient else hidden.new_empty(0)
    for start in range(0, hidden.shape[0], max(1, buffer.shape[0])):
        block = slice(start, min(start + buffer.shape[0], hidden.shape[0]))
        logits = buffer[: block.stop - start]
        if bias is None:
            torch.mm(hidden[block], weight.T, out=logits)
        else:
            torch.addmm(bias, hidden[block], weight.T, out=logits)
        entropy, lse, top1, top2, argmax = (whole[block] for whole in stats)
        into = logits if with_gradient else None
        write_stats((entropy, lse, top1, top2, argmax), logits, suppressed_ids, into)
        if with_gradient:
            torch.mm(logits, weight, out=gradient[block])
    return *stats, gradient


def rows_per_block(hidden: Tensor, weight: Tensor, block_elements: int) -> int:
    """As many rows as ``block_elements`` logits allow, but at least one if there is any."""
    return min(max(1, block_elements // weight.shape[0]), hidden.shape[0])
