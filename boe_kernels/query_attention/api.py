"""The public function of ActiveQueryAttention."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boe_kernels._arguments import (
    GradRows,
    check_attention_tensors,
    check_band,
    check_grad_rows,
    finite_number,
    require_alike,
    require_same_device,
    require_shape,
    require_tensor,
)
from boe_kernels._dispatch import decide, note_path
from boe_kernels._key_mask import checked_key_mask, require_constant_bias
from boe_kernels._library import as_new
from boe_kernels._rows import check_rows, pad_rows
from boe_kernels.query_attention import op
from boe_kernels.query_attention.reference import reference


class DeferredRows:
    """Active rows that become known after the forward and before the backward.

    Pass one in place of ``active_idx``, run the forward, then :meth:`bind` the rows; the
    backward reads them. Running the backward unbound raises. Eager mode only: under
    ``torch.compile`` pass the rows as a tensor.
    """

    def __init__(self) -> None:
        self._rows: Tensor | None = None

    def bind(self, active_idx: Tensor) -> None:
        """Set the rows (int64 (A,), (B, A) padded with −1, or bool); again to replace them."""
        self._rows = active_idx

    @property
    def rows(self) -> Tensor:
        """The bound rows. Raises a RuntimeError before :meth:`bind`."""
        if self._rows is None:
            raise RuntimeError("DeferredRows was not bound before the backward: call bind(rows)")
        return self._rows


def active_query_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    active_idx: Tensor | DeferredRows,
    *,
    key_padding_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    block_size: int | None = None,
    grad_rows: GradRows = "queries",
    backend: str = "auto",
) -> Tensor:
    """Bidirectional attention whose backward runs through the active query rows only.

    The forward equals dense attention for all L queries. The backward treats the output
    at inactive rows as a constant (eq. 30 of the TABES paper): dq is zero there, and dk
    and dv collect what the active rows send, in O(|A|·L·D) time with no L×L tensor. In a
    network this *truncates* the gradient; it is exact only where the gradient arriving
    at inactive rows is zero.

    Args:
        q: (B, Hq, L, D), float64/float32/bfloat16/float16, any strides.
        k, v: (B, Hkv, Lk, D) of q's dtype. Hq must be a multiple of Hkv; grouped heads
            are not expanded.
        active_idx: the active rows: int64 (A,) shared by the batch, int64 (B, A) padded
            with −1, bool (L,) or bool (B, L). No row twice; A may be 0. Bool masks are
            counted, which waits for a GPU. Or :class:`DeferredRows`.
        key_padding_mask: bool (B, Lk), True at real keys (in ``nn.MultiheadAttention`` the
            argument of that name means the opposite). A query that sees no key gives zeros.
        key_bias: (B, Lk), float32 or of q's dtype: added to the scaled scores of every query
            that sees the key, in nats. −∞ excludes the key, as padding does; NaN or +∞ makes
            every query that sees the key NaN. A constant, which gets no gradient except from
            backend="reference".
        scale: factor on q·k; 1/√D by default.
        window: query i sees keys j with |i − j| <= window (needs Lk = L); all by default.
        block_size: query i sees keys up to the end of its block of this many rows:
            block-causal attention (needs Lk = L); all by default. With ``window``, both
            must hold.
        grad_rows: "queries" gives dk and dv at every key; "keys" makes the keys and values
            of inactive rows constants as well, so that dk and dv take |A|×|A| work (needs
            Lk = L).
        backend: "auto", "triton", "native" (on the CPU), "library" or "reference" (plain
            PyTorch, differentiable twice).

    Returns:
        (B, Hq, L, D) of q's dtype. NaN in the inputs spreads as it does in
        ``scaled_dot_product_attention``.

    Raises:
        TypeError, ValueError, IndexError: an argument is not as above.
    """
    scale = _check_structure(q, k, v, key_padding_mask, scale, window, block_size, grad_rows)
    key_mask = checked_key_mask(key_padding_mask, key_bias, ("q", q), k)
    path = decide(op.NAME, backend, q.device, q.dtype, q.shape[-1]).path
    if key_bias is not None and path != "reference":
        require_constant_bias(op.NAME, key_bias)
    if isinstance(active_idx, DeferredRows):
        if path == "reference":
            raise ValueError("DeferredRows cannot be used with backend='reference'")
        return _DeferredActiveQueryAttention.apply(
            q, k, v, active_idx, key_mask, scale, window, block_size, grad_rows, path
        )
    check_rows("active_idx", active_idx, q.shape[0], q.shape[2], like=q)
    if path == "reference":
        note_path(op.NAME, path)
        rows = pad_rows(active_idx)
        return reference(q, k, v, rows, key_mask, scale, window, block_size, grad_rows)
    inputs = (q, k, v, active_idx, key_mask, scale, window, block_size, grad_rows, path)
    return op.forward_op(*inputs)[0]


class OutputWithLSE(NamedTuple):
    """Attention output, and what its backward needs besides."""

    out: Tensor
    """(B, Hq, L, D)."""
    lse: Tensor
    """ln Σ exp(scale · q·k + bias) over the visible keys, (B, Hq, L), float32 (float64 for float64
    queries)."""


def active_query_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    block_size: int | None = None,
    backend: str = "auto",
) -> OutputWithLSE:
    """The forward of :func:`active_query_attention` alone, with the log-sum-exp.

    For callers that manage the backward themselves (:func:`active_query_backward`). No
    graph is recorded. Arguments as in :func:`active_query_attention`.

    Raises:
        ValueError: also where the library path's kernel does not give its log-sum-exp,
            which is so off the CPU.
    """
    scale = _check_structure(q, k, v, key_padding_mask, scale, window, block_size, "queries")
    key_mask = checked_key_mask(key_padding_mask, key_bias, ("q", q), k)
    path = decide(op.NAME, backend, q.device, q.dtype, q.shape[-1]).path
    if path == "reference" or (path == "library" and q.device.type != "cpu"):
        others = "native or library" if q.device.type == "cpu" else "triton"
        raise ValueError(
            f"the {path} path does not give the log-sum-exp on {q.device.type}; "
            f"use the {others} path"
        )
    no_rows = torch.empty(0, dtype=torch.int64, device=q.device)
    with torch.no_grad():
        return OutputWithLSE(
            *op.forward_op(q, k, v, no_rows, key_mask, scale, window, block_size, "queries", path)
        )


def active_query_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    active_idx: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    block_size: int | None = None,
    grad_rows: GradRows = "queries",
    compact_dq: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward of :func:`active_query_attention` alone: dq, dk and dv.

    Args:
        dout: (B, Hq, L, D), the gradient of the output; only active rows are read.
        out, lse: from :func:`active_query_forward` with the same arguments and backend.
        active_idx: int64 (A,) or (B, A) padded with −1, or bool.
        compact_dq: return dq at the active rows only, (B, Hq, A, D) with zeros at padding,
            which saves writing zeros elsewhere.

    The other arguments are those of :func:`active_query_attention`.

    Raises:
        TypeError, ValueError, IndexError: an argument is not as above.
    """
    scale = _check_structure(q, k, v, key_padding_mask, scale, window, block_size, grad_rows)
    key_mask = checked_key_mask(key_padding_mask, key_bias, ("q", q), k)
    for name, value in (("dout", dout), ("out", out)):
        require_tensor(name, value, rank=4)
        require_alike(name, value, "q", q)
        require_shape(name, value, tuple(q.shape), "that of q")
    require_tensor("lse", lse)
    require_same_device("lse", lse, "q", q)
    require_shape("lse", lse, tuple(q.shape[:3]), "(B, Hq, L)")
    expected = torch.float64 if q.dtype == torch.float64 else torch.float32
    if lse.dtype != expected:
        raise TypeError(f"lse must be {expected} for {q.dtype} queries, got {lse.dtype}")
    check_rows("active_idx", active_idx, q.shape[0], q.shape[2], like=q)
    path = decide(op.NAME, backend, q.device, q.dtype, q.shape[-1]).path
    if path == "reference":
        raise ValueError("the reference has no backward of its own: differentiate its forward")
    with torch.no_grad():
        return op.backward_op(
            dout,
            q,
            k,
            v,
            out,
            lse,
            active_idx,
            key_mask,
            scale,
            window,
            block_size,
            grad_rows,
            compact_dq,
            False,
            path,
        )


def _check_structure(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None,
    scale: float | None,
    window: int | None,
    block_size: int | None,
    grad_rows: str,
) -> float:
    """Check what the three functions share; returns the scale."""
    check_attention_tensors(("q", q), ("k", k), ("v", v), key_padding_mask)
    if window is not None or block_size is not None or grad_rows != "queries":
        _check_same_length_options(q, k, window, block_size, grad_rows)
    return 1.0 / math.sqrt(q.shape[3]) if scale is None else finite_number("scale", scale)


def _check_same_length_options(
    q: Tensor, k: Tensor, window: int | None, block_size: int | None, grad_rows: str
) -> None:
    check_band(window, block_size)
    check_grad_rows(grad_rows)
    for name, needed in (
        ("window", window is not None),
        ("block_size", block_size is not None),
        ("grad_rows='keys'", grad_rows == "keys"),
    ):
        if needed and k.shape[2] != q.shape[2]:
            raise ValueError(
                f"{name} needs as many keys as queries, got Lk = {k.shape[2]} and L = {q.shape[2]}"
            )


class _DeferredActiveQueryAttention(torch.autograd.Function):
    """As :class:`op.ActiveQueryAttention`, with the rows read when the backward runs."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, deferred: DeferredRows, *rest: Any
    ) -> Tensor:
        unbound = torch.empty(0, dtype=torch.int64, device=q.device)
        out, lse = as_new(op.forward_op(q, k, v, unbound, *rest))
        key_mask, *ctx.options = rest
        ctx.save_for_backward(q, k, v, out, lse, key_mask)
        ctx.deferred = deferred
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, key_mask = ctx.saved_tensors
        rows = ctx.deferred.rows
        check_rows("the bound rows", rows, q.shape[0], q.shape[2], like=q)
        *options, path = ctx.options
        grads = op.backward_op(
            dout, q, k, v, out, lse, rows, key_mask, *options, False, False, path
        )
        return (*grads, *(None,) * 7)
