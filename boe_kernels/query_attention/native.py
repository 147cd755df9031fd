"""ActiveQueryAttention by the native CPU kernels (``csrc/attention.cpp``).

Forward: an online softmax over blocks of keys. Backward: the probabilities of the active
rows are computed again, block by block, and all five products are taken of a block while
it is in the cache; rows of q, out and dout are read where they lie. Everything is float32
inside.
"""

from __future__ import annotations

from torch import Tensor

from boe_kernels._native_attention import (
    AtPositions,
    Rows,
    Sight,
    attention_backward,
    attention_forward,
    empty_gradient,
    key_row_gradients,
)
from boe_kernels._rows import gather_rows, spread_rows


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
) -> tuple[Tensor, Tensor]:
    """Output (B, Hq, L, D), in memory (B, L, Hq, D), and log-sum-exp (B, Hq, L)."""
    batch, heads, length, width = q.shape
    out = q.new_empty(batch, length, heads, width).transpose(1, 2)
    sight = Sight(scale, None, key_mask, window, block_size)
    return out, attention_forward(q, k, v, sight, out)


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
    grad_rows: str,
    compact_dq: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`backward_of_rows`, given the whole q, out and log-sum-exp."""
    sight = Sight(scale, rows, key_mask, window, block_size)
    q_rows, out_rows, lse_rows = AtPositions(q), AtPositions(out), AtPositions(lse)
    return _gradients(dout, q_rows, k, v, out_rows, lse_rows, sight, grad_rows, compact_dq)


def backward_of_rows(
    dout: Tensor,
    q_rows: Tensor,
    k: Tensor,
    v: Tensor,
    out_rows: Tensor,
    lse_rows: Tensor,
    rows: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
    grad_rows: str,
    compact_dq: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq (zeros at inactive rows, or at the rows only), dk and dv. Arguments as in library."""
    sight = Sight(scale, rows, key_mask, window, block_size)
    return _gradients(dout, q_rows, k, v, out_rows, lse_rows, sight, grad_rows, compact_dq)


def _gradients(
    dout: Tensor,
    q: Rows,
    k: Tensor,
    v: Tensor,
    out: Rows,
    lse: Rows,
    sight: Sight,
    grad_rows: str,
    compact_dq: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    given = AtPositions(dout), q
    if compact_dq:
        assert sight.rows is not None
        dq = dout.new_empty(*dout.shape[:2], sight.rows.shape[-1], dout.shape[3])
    else:
        dq = empty_gradient(dout)
    written: Rows = dq if compact_dq else AtPositions(dq)
    if grad_rows == "queries":
        dk, dv = empty_gradient(k), empty_gradient(v)
        attention_backward(*given, k, v, out, lse, sight, dq=written, dk=dk, dv=dv)
        return dq, dk, dv
    assert sight.rows is not None
    attention_backward(*given, k, v, out, lse, sight, dq=written)
    read = sight.rows.clamp_min(0)
    live = gather_rows(k, read), gather_rows(v, read)
    compact = key_row_gradients(*given, *live, out, lse, sight)
    dk, dv = (spread_rows(grad, read, k.shape[2]) for grad in compact)
    return dq, dk, dv
