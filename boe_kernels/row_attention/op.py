"""``boe_kernels::active_row_attention``, registered with fake and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boe_kernels._dispatch import always, note_path, register_paths
from boe_kernels._library import define_op
from boe_kernels.row_attention import library

NAME = "active_row_attention"
register_paths(NAME, library=always)


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *inputs, path = args
    note_path(NAME, path)
    return library.forward(*inputs)


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return library.forward(*args[:-1])


def _backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, path = args
    note_path(f"{NAME}_backward", path)
    dq, dk, dv = library.backward(*inputs)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def _backward_fake(
    dout: Tensor, q_rows: Tensor, keys: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads = keys.shape[:2]
    kv_shape = (batch, heads, *q_rows.shape[2:])
    return q_rows.new_empty(q_rows.shape), keys.new_empty(kv_shape), keys.new_empty(kv_shape)


class ActiveRowAttention(torch.autograd.Function):
    """Gradients reach the active rows only; the frozen keys and values get none."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return forward_op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        q_rows, _, _, _, _, rows, key_padding_mask, ctx.scale, ctx.window, ctx.path = inputs
        out, lse, keys, values = output
        ctx.mark_non_differentiable(lse, keys, values)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q_rows, keys, values, out, lse, rows, key_padding_mask)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return (None,) * 10
        q_rows, keys, values, out, lse, rows, key_padding_mask = ctx.saved_tensors
        grads = backward_op(
            dout,
            q_rows,
            keys,
            values,
            out,
            lse,
            rows,
            key_padding_mask,
            ctx.scale,
            ctx.window,
            ctx.path,
        )
        return (*grads, None, None, None, None, None, None, None)


forward_op = define_op(
    NAME,
    "(Tensor q_rows, Tensor k_rows, Tensor v_rows, Tensor k, Tensor v, Tensor rows, "
    "Tensor? key_padding_mask, float scale, int? window, str path) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    ActiveRowAttention.apply,
)
backward_op = define_op(
    f"{NAME}_backward",
    "(Tensor dout, Tensor q_rows, Tensor keys, Tensor values, Tensor out, Tensor lse, "
    "Tensor rows, Tensor? key_padding_mask, float scale, int? window, str path) "
    "-> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
