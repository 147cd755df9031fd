"""``boe_kernels::active_query_attention``, registered with fake and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boe_kernels._dispatch import always, implementation, note_path, register_paths
from boe_kernels._library import define_op
from boe_kernels._native import why_not_native
from boe_kernels._rows import empty_by_rows, pad_rows, with_unit_stride
from boe_kernels._triton import why_not_triton
from boe_kernels.query_attention import library

NAME = "active_query_attention"
register_paths(NAME, triton=why_not_triton, native=why_not_native, library=always)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    active_idx: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
    grad_rows: str,
    path: str,
) -> tuple[Tensor, Tensor]:
    note_path(NAME, path)
    run = implementation(__package__, path).forward
    return run(q, k, v, key_mask, scale, window, block_size)


def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    active_idx: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
    grad_rows: str,
    path: str,
) -> tuple[Tensor, Tensor]:
    if path == "triton":
        out = torch.empty_like(with_unit_stride(q))
        return out, q.new_empty(q.shape[:3], dtype=torch.float32)
    if path == "native":
        return empty_by_rows(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    return library.forward(q, k, v, key_mask, scale, window, block_size)


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    active_idx: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
    grad_rows: str,
    compact_dq: bool,
    kept_rows: bool,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    note_path(f"{NAME}_backward", path)
    module = implementation(__package__, path)
    run = module.backward_of_rows if kept_rows else module.backward
    return run(
        dout,
        q,
        k,
        v,
        out,
        lse,
        _indices(active_idx, path),
        key_mask,
        scale,
        window,
        block_size,
        grad_rows,
        compact_dq,
    )


def _backward_fake(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    active_idx: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    *_, grad_rows, compact_dq, _, path = options
    compact_shape = (*q.shape[:2], active_idx.shape[-1], q.shape[3])
    if path == "triton":
        dq, dk, dv = (torch.empty_like(with_unit_stride(x)) for x in (q, k, v))
        return q.new_empty(compact_shape) if compact_dq else dq, dk, dv
    if compact_dq:
        dq = q.new_empty(compact_shape)
    else:
        dq = empty_by_rows(dout) if path == "native" else q.new_empty(dout.shape)
    if grad_rows == "keys":
        return dq, k.new_empty(k.shape), v.new_empty(v.shape)
    return dq, empty_by_rows(k), empty_by_rows(v)


def _indices(active_idx: Tensor, path: str) -> Tensor:
    """The active rows in the form that ``path`` takes: all but Triton also take int64 (A,)."""
    return active_idx if _taken_as_is(active_idx, path) else pad_rows(active_idx)


def _taken_as_is(active_idx: Tensor, path: str) -> bool:
    return path != "triton" and active_idx.dtype != torch.bool


class ActiveQueryAttention(torch.autograd.Function):
    """Forward over all queries, backward through the active ones."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        active_idx: Tensor,
        key_mask: Tensor | None,
        scale: float,
        window: int | None,
        block_size: int | None,
        grad_rows: str,
        path: str,
    ) -> tuple[Tensor, Tensor]:
        return forward_op(q, k, v, active_idx, key_mask, scale, window, block_size, grad_rows, path)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, active_idx, key_mask, *options = inputs
        out, lse = output
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)
        # A mask has to be counted, the Triton kernels gather by themselves, transforms want to
        # see what the gradient depends on, and a DTensor is sharded by the op, not before it.
        kept_rows = (
            _taken_as_is(active_idx, options[-1])
            and not torch._C._are_functorch_transforms_active()
            and not hasattr(q, "to_local")
        )
        if kept_rows:
            # With their history, so that a second derivative is refused, not left out.
            with torch.enable_grad():
                q, out, lse = library.keep_rows(q, out, lse, active_idx)
        *options, path = options
        ctx.options = (*options, False, kept_rows, path)
        ctx.save_for_backward(q, k, v, out, lse, active_idx, key_mask)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return (None,) * 10
        grads = backward_op(dout, *ctx.saved_tensors, *ctx.options)
        return (*grads, *(None,) * 7)


forward_op = define_op(
    NAME,
    "(Tensor q, Tensor k, Tensor v, Tensor active_idx, Tensor? key_mask, float scale, "
    "int? window, int? block_size, str grad_rows, str path) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    ActiveQueryAttention,
)
backward_op = define_op(
    f"{NAME}_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor active_idx, "
    "Tensor? key_mask, float scale, int? window, int? block_size, str grad_rows, "
    "bool compact_dq, bool kept_rows, str path) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
