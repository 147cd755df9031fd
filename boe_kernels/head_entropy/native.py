"""Statistics of a linear head: PyTorch's matrix products around the native CPU kernels.

Statistics and dH/dz of a block are made together.
"""

from __future__ import annotations

from torch import Tensor

from boe_kernels.entropy.native import empty_stats, write_stats
from boe_kernels.head_entropy.in_place import forward_in_place


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    suppressed_ids: Tensor | None,
    block_elements: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The five statistics and dH/dh (N, D), which is empty unless ``with_gradient``."""
    return forward_in_place(
        hidden,
        weight,
        bias,
        suppressed_ids,
        block_elements,
        with_gradient,
        empty_stats(hidden),
        write_stats,
        one_buffer=False,
    )
