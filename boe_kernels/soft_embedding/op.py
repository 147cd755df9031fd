"""``boe_kernels::inject_soft_embeddings``, registered with fake and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boe_kernels._dispatch import always, implementation, note_path, register_paths
from boe_kernels._library import define_op
from boe_kernels._native import why_not_native
from boe_kernels._triton import why_not_triton
from boe_kernels.soft_embedding import library

NAME = "inject_soft_embeddings"
TOP_K = f"{NAME}(top_k)"
"""The top-k form has its own paths, and this name in decisions and observations."""


def _why_not_native_and_dense(device: torch.device, dtype: torch.dtype) -> str | None:
    return "without top_k it is one matrix product, which PyTorch's kernels do best"


def _why_not_preferred(
    device: torch.device, dtype: torch.dtype, table: tuple[int, int] | None
) -> str | None:
    # Here, because it reads a table that nobody needs without a GPU.
    from boe_kernels.soft_embedding.fused_launch import why_not_preferred

    return why_not_preferred(device, dtype, table)


register_paths(
    NAME,
    triton_fused=why_not_triton,
    triton=why_not_triton,
    native=_why_not_native_and_dense,
    library=always,
    passed_over={"triton_fused": _why_not_preferred},
)
register_paths(TOP_K, triton=why_not_triton, native=why_not_native, library=always)


def form(top_k: int | None) -> str:
    """The name under which a call's path is decided."""
    return NAME if top_k is None else TOP_K


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    *inputs, path = args
    note_path(form(inputs[6]), path)
    return implementation(__package__, path).forward(*inputs)


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    *inputs, path = args
    if path == "library":
        return library.forward(*inputs)
    embeds, rows = inputs[:2]
    batch, _, width = embeds.shape
    return embeds.new_empty(embeds.shape), embeds.new_empty(batch, rows.shape[1], width)


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
    _InjectSoftEmbeddings,
)
backward_op = define_op(
    f"{NAME}_backward",
    "(Tensor dout, Tensor rows) -> Tensor",
    library.backward,
    library.backward,
)
