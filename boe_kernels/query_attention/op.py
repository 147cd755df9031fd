"""``boe_kernels::active_query_attention``, registered with fake and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boe_kernels._dispatch import always, note_path, register_paths
from boe_kernels._library import define_op
from boe_kernels._masked_sdpa import gradient_layout
from boe_kernels._rows import pad_rows
from boe_kernels.query_attention import library

NAME = "active_query_attention"
register_paths(NAME, library=always)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    active_idx: Tensor,
    key_padding_mask: Tensor | None,
    scale: float,
    window: int | None,
    path: str,
) -> tuple[Tensor, Tensor]:
    note_path(NAME, path)
    return library.forward(q, k, v, key_padding_mask, scale, window)


def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    active_idx: Tensor,
    key_padding_mask: Tensor | None,
    scale: float,
    window: int | None,
    path: str,
) -> tuple[Tensor, Tensor]:
    return library.forward(q, k, v, key_padding_mask, scale, window)


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    active_idx: Tensor,
    key_padding_mask: Tensor | None,
    scale: float,
    window: int | None,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    note_path(f"{NAME}_backward", path)
    rows = pad_rows(active_idx)
    return library.backward(dout, q, k, v, out, lse, rows, key_padding_mask, scale, window)


def _backward_fake(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), gradient_layout(k), gradient_layout(v)


class ActiveQueryAttention(torch.autograd.Function):
    """Forward over all queries, backward through the active ones."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        active_idx: Tensor,
        key_padding_mask: Tensor | None,
        scale: float,
        window: int | None,
        path: str,
    ) -> tuple[Tensor, Tensor]:
        return forward_op(q, k, v, active_idx, key_padding_mask, scale, window, path)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, active_idx, key_padding_mask, ctx.scale, ctx.window, ctx.path = inputs
        out, lse = output
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, out, lse, active_idx, key_padding_mask)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return (None,) * 8
        q, k, v, out, lse, active_idx, key_padding_mask = ctx.saved_tensors
        grads = backward_op(
            dout, q, k, v, out, lse, active_idx, key_padding_mask, ctx.scale, ctx.window, ctx.path
        )
        return (*grads, None, None, None, None, None)


forward_op = define_op(
    NAME,
    "(Tensor q, Tensor k, Tensor v, Tensor active_idx, Tensor? key_padding_mask, float scale, "
    "int? window, str path) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    ActiveQueryAttention.apply,
)
backward_op = define_op(
    f"{NAME}_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor active_idx, "
    "Tensor? key_padding_mask, float scale, int? window, str path) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
