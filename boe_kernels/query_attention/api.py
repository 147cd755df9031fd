"""The public function of ActiveQueryAttention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from boe_kernels._arguments import check_attention_tensors
from boe_kernels._dispatch import decide, note_path
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
    scale: float | None = None,
    window: int | None = None,
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
        key_padding_mask: bool (B, Lk), True at real keys. A query that sees no key gives
            zeros.
        scale: factor on q·k; 1/√D by default.
        window: query i sees keys j with |i − j| <= window (needs Lk = L); all by default.
        backend: "auto", "library" or "reference" (plain PyTorch, differentiable twice).

    Returns:
        (B, Hq, L, D) of q's dtype. NaN in the inputs spreads as it does in
        ``scaled_dot_product_attention``.

    Raises:
        TypeError, ValueError, IndexError: an argument is not as above.
    """
    check_attention_tensors(("q", q), ("k", k), ("v", v), key_padding_mask)
    batch, _, length, width = q.shape
    if window is not None and window < 0:
        raise ValueError(f"window must be at least 0, got {window}")
    if window is not None and k.shape[2] != length:
        raise ValueError(
            f"window needs as many keys as queries, got Lk = {k.shape[2]} and L = {length}"
        )
    scale = 1.0 / math.sqrt(width) if scale is None else float(scale)
    path = decide(op.NAME, backend, q.device, q.dtype).path
    if isinstance(active_idx, DeferredRows):
        if path == "reference":
            raise ValueError("DeferredRows needs backend='auto' or 'library', not 'reference'")
        return _DeferredActiveQueryAttention.apply(
            q, k, v, active_idx, key_padding_mask, scale, window, path
        )
    check_rows("active_idx", active_idx, batch, length, like=q)
    if path == "reference":
        note_path(op.NAME, path)
        return reference(q, k, v, pad_rows(active_idx), key_padding_mask, scale, window)
    return op.forward_op(q, k, v, active_idx, key_padding_mask, scale, window, path)[0]


class _DeferredActiveQueryAttention(torch.autograd.Function):
    """As :class:`op.ActiveQueryAttention`, with the rows read when the backward runs."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        deferred: DeferredRows,
        key_padding_mask: Tensor | None,
        scale: float,
        window: int | None,
        path: str,
    ) -> Tensor:
        unbound = torch.empty(0, dtype=torch.int64, device=q.device)
        out, lse = op.forward_op(q, k, v, unbound, key_padding_mask, scale, window, path)
        ctx.save_for_backward(q, k, v, out, lse, key_padding_mask)
        ctx.deferred, ctx.scale, ctx.window, ctx.path = deferred, scale, window, path
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, key_padding_mask = ctx.saved_tensors
        rows = ctx.deferred.rows
        check_rows("the bound rows", rows, q.shape[0], q.shape[2], like=q)
        grads = op.backward_op(
            dout, q, k, v, out, lse, rows, key_padding_mask, ctx.scale, ctx.window, ctx.path
        )
        return (*grads, None, None, None, None, None)
