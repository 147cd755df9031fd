"""``boe_kernels::inject_soft_embeddings``, registered with fake and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boe_kernels._dispatch import always, note_path, register_paths
from boe_kernels._library import define_op
from boe_kernels.soft_embedding import library

NAME = "inject_soft_embeddings"
register_paths(NAME, library=always)


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    *inputs, path = args
    note_path(NAME, path)
    return library.forward(*inputs)


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    return library.forward(*args[:-1])


class _InjectSoftEmbeddings(torch.autograd.Function):
    """The soft write is a constant (eq. 29); only untouched rows pass a gradient."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return forward_op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        grad = None if dout is None else backward_op(dout, *ctx.saved_tensors)
        return (grad, *(None,) * 8)


forward_op = define_op(
    NAME,
    "(Tensor embeds, Tensor rows, Tensor probs_or_logits, Tensor table, Tensor mask_embed, "
    "float alpha, int? top_k, bool is_logits, str path) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    _InjectSoftEmbeddings.apply,
)
backward_op = define_op(
    f"{NAME}_backward",
    "(Tensor dout, Tensor rows) -> Tensor",
    library.backward,
    library.backward,
)
