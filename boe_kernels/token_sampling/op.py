"""``boe_kernels::sample_tokens``, registered with a fake; it has no derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._dispatch import always, implementation, note_path, register_paths
from boe_kernels._library import define_op
from boe_kernels._triton import why_not_triton
from boe_kernels.entropy.reference import accumulation_dtype

NAME = "sample_tokens"
register_paths(NAME, triton=why_not_triton, library=always)

StatsAndToken = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _forward(
    logits: Tensor, seeds: Tensor, temperature: float, suppressed_ids: Tensor | None, path: str
) -> StatsAndToken:
    note_path(NAME, path)
    return implementation(__package__, path).forward(logits, seeds, temperature, suppressed_ids)


def _forward_fake(
    logits: Tensor, seeds: Tensor, temperature: float, suppressed_ids: Tensor | None, path: str
) -> StatsAndToken:
    rows = logits.shape[0]
    dtype = accumulation_dtype(logits.dtype)
    entropy, lse, top1, top2 = (logits.new_empty(rows, dtype=dtype) for _ in range(4))
    argmax, token = (logits.new_empty(rows, dtype=torch.int64) for _ in range(2))
    return entropy, lse, top1, top2, argmax, token


forward_op = define_op(
    NAME,
    "(Tensor logits, Tensor seeds, float temperature, Tensor? suppressed_ids, str path) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
