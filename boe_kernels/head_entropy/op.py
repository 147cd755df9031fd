"""``boe_kernels::linear_entropy``, registered with fake and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boe_kernels._dispatch import always, implementation, note_path, register_paths
from boe_kernels._library import define_op
from boe_kernels._native import why_not_native
from boe_kernels._triton import why_not_triton
from boe_kernels.entropy.reference import accumulation_dtype

NAME = "linear_entropy"
register_paths(NAME, triton=why_not_triton, native=why_not_native, library=always)

StatsAndGradient = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    suppressed_ids: Tensor | None,
    block_elements: int,
    with_gradient: bool,
    path: str,
) -> StatsAndGradient:
    note_path(NAME, path)
    run = implementation(__package__, path).forward
    return run(hidden, weight, bias, suppressed_ids, block_elements, with_gradient)


def _forward_fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    suppressed_ids: Tensor | None,
    block_elements: int,
    with_gradient: bool,
    path: str,
) -> StatsAndGradient:
    rows = hidden.shape[0]
    dtype = accumulation_dtype(hidden.dtype)
    entropy, lse, top1, top2 = (hidden.new_empty(rows, dtype=dtype) for _ in range(4))
    argmax = hidden.new_empty(rows, dtype=torch.int64)
    gradient = torch.empty_like(hidden) if with_gradient else hidden.new_empty(0)
    return entropy, lse, top1, top2, argmax, gradient


class _LinearEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        suppressed_ids: Tensor | None,
        block_elements: int,
        with_gradient: bool,
        path: str,
    ) -> StatsAndGradient:
        return forward_op(hidden, weight, bias, suppressed_ids, block_elements, with_gradient, path)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: StatsAndGradient) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.with_gradient = inputs[5]
        ctx.save_for_backward(output[5], inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        if not ctx.with_gradient:
            raise RuntimeError("boe_kernels::linear_entropy was called with with_gradient=False")
        gradient, hidden = ctx.saved_tensors
        return (backward_op(grad, gradient, hidden), *(None,) * 6)


def _backward(grad_entropy: Tensor, gradient: Tensor, hidden: Tensor) -> Tensor:
    # ``hidden`` is not read: it is here so that a second derivative, which would be
    # incomplete without it, is noticed and refused.
    return (grad_entropy.unsqueeze(-1) * gradient).to(gradient.dtype)


forward_op = define_op(
    NAME,
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor? suppressed_ids, int block_elements, "
    "bool with_gradient, str path) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    _LinearEntropy,
)
backward_op = define_op(
    f"{NAME}_backward",
    "(Tensor grad_entropy, Tensor gradient, Tensor hidden) -> Tensor",
    _backward,
    _backward,
)
