"""``boe_kernels::active_row_attention``, registered with fake and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boe_kernels._dispatch import always, implementation, note_path, register_paths
from boe_kernels._library import define_op
from boe_kernels._native import why_not_native
from boe_kernels._rows import empty_by_rows, replace_rows, with_unit_stride
from boe_kernels._triton import why_not_triton
from boe_kernels.row_attention import library

NAME = "active_row_attention"
_OLDEST_TRITON_ON_AMD = (3, 9)


def _why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    """As for every op; AMD's compiler must also select between pointers to two tensors."""
    why = why_not_triton(device, dtype)
    if why is None and device.type == "cuda" and torch.version.hip is not None:
        import triton

        version = triton.__version__
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_TRITON_ON_AMD:
            return f"needs Triton 3.9 on an AMD GPU, got {version}"
    return why


register_paths(NAME, triton=_why_not_triton, native=why_not_native, library=always)


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *inputs, path = args
    note_path(NAME, path)
    return implementation(__package__, path).forward(*inputs)


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *inputs, path = args
    q_rows = inputs[0]
    if path == "triton":
        lse = q_rows.new_empty(q_rows.shape[:3], dtype=torch.float32)
        out = torch.empty_like(with_unit_stride(q_rows))
        return out, lse, q_rows.new_empty(0), q_rows.new_empty(0)
    if path == "native":
        _, k_rows, v_rows, k, v, rows, *_ = inputs
        lse = q_rows.new_empty(q_rows.shape[:3], dtype=torch.float32)
        merged = replace_rows(k, rows, k_rows), replace_rows(v, rows, v_rows)
        return empty_by_rows(q_rows), lse, *merged
    return library.forward(*inputs, padded=True)


def _backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, path = args
    note_path(f"{NAME}_backward", path)
    return implementation(__package__, path).backward(*inputs)


def _backward_fake(
    dout: Tensor, q_rows: Tensor, k_rows: Tensor, v_rows: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        q_rows.new_empty(q_rows.shape),
        k_rows.new_empty(k_rows.shape),
        v_rows.new_empty(v_rows.shape),
    )


class ActiveRowAttention(torch.autograd.Function):
    """Gradients reach the active rows only; the frozen keys and values get none."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return forward_op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        q_rows, k_rows, v_rows, k, v, rows, key_mask, *ctx.options = inputs
        out, lse, keys, values = output
        ctx.mark_non_differentiable(lse, keys, values)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q_rows, k_rows, v_rows, k, v, keys, values, out, lse, rows, key_mask)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return (None,) * 11
        return (*backward_op(dout, *ctx.saved_tensors, *ctx.options), *(None,) * 8)


forward_op = define_op(
    NAME,
    "(Tensor q_rows, Tensor k_rows, Tensor v_rows, Tensor k, Tensor v, Tensor rows, "
    "Tensor? key_mask, float scale, int? window, int? block_size, str path) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    ActiveRowAttention,
)
backward_op = define_op(
    f"{NAME}_backward",
    "(Tensor dout, Tensor q_rows, Tensor k_rows, Tensor v_rows, Tensor k, Tensor v, "
    "Tensor keys, Tensor values, Tensor out, Tensor lse, Tensor rows, "
    "Tensor? key_mask, float scale, int? window, int? block_size, str path) "
    "-> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
