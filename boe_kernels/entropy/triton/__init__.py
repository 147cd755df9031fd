"""Vocabulary statistics as Triton kernels: one read forward, one read and one write back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from boe_kernels._triton import AotCase
from boe_kernels.entropy.triton.backward import backward, write_stats
from boe_kernels.entropy.triton.forward import empty_stats, forward, forward_with_draw

__all__ = [
    "aot_cases",
    "backward",
    "empty_stats",
    "forward",
    "forward_with_draw",
    "write_stats",
]


def aot_cases() -> Iterator[AotCase]:
    """Few and many rows, ids listed and flagged, vocabularies that 16 divides and not."""
    few, many = 64, 1024
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name, sample = str(dtype).removeprefix("torch."), dtype == torch.bfloat16
        logits = torch.empty(many, 126464, dtype=dtype, device="meta")
        ids = torch.empty(1, dtype=torch.int64, device="meta")
        yield AotCase(f"few rows, {name}", partial(forward, logits[:few], ids), sample)
        yield AotCase(f"many rows, {name}", partial(forward, logits, ids), sample)
        row = logits.new_empty(few, dtype=torch.float32)
        gradient = partial(backward, row, logits[:few], row, row, ids)
        yield AotCase(f"gradient, {name}", gradient, sample)
        with_gradient = partial(write_stats, empty_stats(logits), logits, ids, logits)
        yield AotCase(f"with gradient, {name}", with_gradient, sample)
    odd = torch.empty(few, 50257, dtype=torch.bfloat16, device="meta")
    flags = torch.empty(100, dtype=torch.int64, device="meta")
    stats = empty_stats(odd)
    yield AotCase("odd vocabulary, many suppressed", partial(write_stats, stats, odd, flags, odd))
