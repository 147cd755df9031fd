"""``boe_kernels::frozen_linear``, registered with fake and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boe_kernels._dispatch import always, implementation, note_path, register_paths
from boe_kernels._library import define_op

NAME = "frozen_linear"
register_paths(NAME, library=always)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, path: str) -> Tensor:
    note_path(NAME, path)
    return implementation(__package__, path).forward(x, weight, bias)


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, path: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class _FrozenLinear(torch.autograd.Function):
    """The backward, dout W, is the same op with Wᵀ, and so has a derivative too."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, path: str) -> Tensor:
        return forward_op(x, weight, bias, path)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, _, ctx.path = inputs
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return forward_op(dout, weight.t(), None, ctx.path), None, None, None


forward_op = define_op(
    NAME,
    "(Tensor x, Tensor weight, Tensor? bias, str path) -> Tensor",
    _forward,
    _forward_fake,
    _FrozenLinear,
)
