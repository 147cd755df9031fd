"""Statistics of a linear head: the vendor's matrix products around the Triton kernels.

With many rows in a block, its statistics and dH/dz are one launch; dH/dh = −Cov_p(z, W) is
dH/dz·W, a second product.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from boe_kernels._triton import AotCase
from boe_kernels.entropy.triton import empty_stats, write_stats
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
        one_buffer=True,
    )


def aot_cases() -> Iterator[AotCase]:
    """Blocks of the default size; the kernels are those of ``entropy``."""
    hidden = torch.empty(1024, 4096, dtype=torch.bfloat16, device="meta")
    call = partial(forward, hidden, hidden.new_empty(126464, 4096), None, None, 1 << 24, True)
    yield AotCase("with gradient, bfloat16", call)
