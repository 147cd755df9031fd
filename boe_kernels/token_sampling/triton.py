"""Token draws as a Triton kernel: the noise is made while the logits pass by, read once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from boe_kernels._triton import AotCase
from boe_kernels.entropy.triton import forward_with_draw


def forward(
    logits: Tensor, seeds: Tensor, temperature: float, suppressed_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The five statistics and the drawn tokens, int64 (N,)."""
    stats, token = forward_with_draw(logits, suppressed_ids, seeds, temperature)
    return *stats, token


def aot_cases() -> Iterator[AotCase]:
    """Ids listed and flagged."""
    seeds = torch.empty(64, dtype=torch.int64, device="meta")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        logits = torch.empty(64, 126464, dtype=dtype, device="meta")
        call = partial(forward, logits, seeds, 0.7, seeds[:1])
        yield AotCase(name, call, sample=dtype == torch.bfloat16)
    odd = torch.empty(64, 50257, dtype=torch.bfloat16, device="meta")
    yield AotCase("odd vocabulary, many suppressed", partial(forward, odd, seeds, 0.7, seeds))
