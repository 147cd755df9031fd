"""``boe_kernels::entropy_stats``, registered with fake and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boe_kernels._dispatch import always, implementation, note_path, register_paths
from boe_kernels._library import define_op
from boe_kernels._native import why_not_native
from boe_kernels._triton import why_not_triton
from boe_kernels.entropy.reference import accumulation_dtype

NAME = "entropy_stats"
register_paths(NAME, triton=why_not_triton, native=why_not_native, library=always)

Stats = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _forward(logits: Tensor, suppressed_ids: Tensor | None, path: str) -> Stats:
    note_path(NAME, path)
    return implementation(__package__, path).forward(logits, suppressed_ids)


def _forward_fake(logits: Tensor, suppressed_ids: Tensor | None, path: str) -> Stats:
    rows = logits.shape[0]
    dtype = accumulation_dtype(logits.dtype)
    entropy, lse, top1, top2 = (logits.new_empty(rows, dtype=dtype) for _ in range(4))
    return entropy, lse, top1, top2, logits.new_empty(rows, dtype=torch.int64)


def _backward(
    grad_entropy: Tensor,
    logits: Tensor,
    entropy: Tensor,
    lse: Tensor,
    suppressed_ids: Tensor | None,
    path: str,
) -> Tensor:
    note_path(f"{NAME}_backward", path)
    run = implementation(__package__, path).backward
    return run(grad_entropy, logits, entropy, lse, suppressed_ids)


def _backward_fake(grad_entropy: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    return logits.new_empty(logits.shape)


class _EntropyStats(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, suppressed_ids: Tensor | None, path: str) -> Stats:
        return forward_op(logits, suppressed_ids, path)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Stats) -> None:
        logits, suppressed_ids, ctx.path = inputs
        entropy, lse, *rest = output
        ctx.mark_non_differentiable(lse, *rest)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, entropy, lse, suppressed_ids)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None
        logits, entropy, lse, suppressed_ids = ctx.saved_tensors
        return backward_op(grad, logits, entropy, lse, suppressed_ids, ctx.path), None, None


forward_op = define_op(
    NAME,
    "(Tensor logits, Tensor? suppressed_ids, str path) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    _EntropyStats,
)
backward_op = define_op(
    f"{NAME}_backward",
    "(Tensor grad_entropy, Tensor logits, Tensor entropy, Tensor lse, Tensor? suppressed_ids, "
    "str path) -> Tensor",
    _backward,
    _backward_fake,
)
