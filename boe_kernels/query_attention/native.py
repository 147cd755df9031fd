"""ActiveQueryAttention by the native CPU kernels (``csrc/attention.cpp``).

Forward: an online softmax over blocks of keys. Backward: the probabilities of the active
rows are computed again, block by block, and all five products are taken of a block while
it is in the cache; rows of q, out and dout are read where they lie. Everything is float32
inside.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from boe_kernels._native_attention import (
    AtPositions,
    Rows,
    Sight,
    attention_backward,
    attention_forward,
    key_row_gradients,
)
from boe_kernels._rows import empty_by_rows, gather_rows, spread_rows


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
    out = empty_by_rows(q)
    sight = Sight(scale, None, key_mask, window, block_size)
    return out, attention_forward(q, k, v, sight, out)


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`backward_of_rows`, given the whole q, out and log-sum-exp."""
    return backward_of_rows(dout, AtPositions(q), k, v, AtPositions(out), AtPositions(lse), *rest)


def backward_of_rows(
    dout: Tensor,
    q_rows: Rows,
    k: Tensor,
    v: Tensor,
    out_rows: Rows,
    lse_rows: Rows,
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
    given = AtPositions(dout), q_rows
    compact_shape = (*dout.shape[:2], rows.shape[-1], dout.shape[3])
    dq = dout.new_empty(compact_shape) if compact_dq else empty_by_rows(dout)
    written: Rows = dq if compact_dq else AtPositions(dq)
    if grad_rows == "queries":
        dk, dv = empty_by_rows(k), empty_by_rows(v)
        attention_backward(*given, k, v, out_rows, lse_rows, sight, dq=written, dk=dk, dv=dv)
        return dq, dk, dv
    attention_backward(*given, k, v, out_rows, lse_rows, sight, dq=written)
    read = rows.clamp_min(0)
    live = gather_rows(k, read), gather_rows(v, read)
    key_grads = key_row_gradients(*given, *live, out_rows, lse_rows, sight)
    dk, dv = (spread_rows(grad, read, k.shape[2]) for grad in key_grads)
    return dq, dk, dv
