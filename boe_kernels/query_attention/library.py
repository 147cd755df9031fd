"""ActiveQueryAttention from PyTorch's own attention kernels.

Forward: one kernel over all queries. Backward: gather the active rows of q, out, dout
and the log-sum-exp, run the attention backward on them against the full k and v, and
spread dq over zeros: O(|A|·L·D) time, O(|A|·D) extra memory besides the gradients.
PyTorch's backward gives dk and dv at every key; ``grad_rows="keys"`` zeroes them
afterwards and saves nothing here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boe_kernels._masked_sdpa import (
    as_bias,
    attend,
    attend_backward,
    keys_bias,
    rows_bias,
    visibility,
)
from boe_kernels._rows import gather_rows, has_padding, spread_rows, zero_padding

# With a window or blocks the forward runs in blocks of queries against the keys that they
# can see, so that no mask spans all pairs.
_QUERY_BLOCK = 256


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
) -> tuple[Tensor, Tensor]:
    """Output (B, Hq, L, D) and log-sum-exp (B, Hq, L), empty where the kernel keeps it."""
    if window is None and block_size is None:
        return attend(q, k, v, keys_bias(key_mask, q.dtype), scale)
    length = q.shape[2]
    outs, lses = [], []
    for start in range(0, max(length, 1), _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, length)
        first = 0 if window is None else max(0, start - window)
        last = length if window is None else min(length, stop + window)
        if block_size is not None:
            last = min(last, ((max(stop, 1) - 1) // block_size + 1) * block_size)
        mask = None if key_mask is None else key_mask[:, first:last]
        visible = visibility(
            torch.arange(start, stop, device=q.device).unsqueeze(0),
            torch.arange(first, last, device=q.device),
            mask,
            window,
            block_size,
        )
        out, lse = attend(
            q[:, :, start:stop],
            k[:, :, first:last],
            v[:, :, first:last],
            as_bias(visible, q.dtype, mask),
            scale,
        )
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def keep_rows(q: Tensor, out: Tensor, lse: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the backward reads of q, out and the log-sum-exp: their active rows.

    Kept in place of the whole tensors they hold O(|A|·D) memory until the backward, which
    is then spared the gathering. Padding reads row 0.
    """
    rows = rows.clamp_min(0) if rows.dim() == 2 else rows
    lse_rows = gather_rows(lse.unsqueeze(-1), rows).squeeze(-1) if lse.numel() else lse
    return gather_rows(q, rows), gather_rows(out, rows), lse_rows


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`backward_of_rows`, given the whole q, out and log-sum-exp."""
    q_rows, out_rows, lse_rows = keep_rows(q, out, lse, rows)
    return backward_of_rows(dout, q_rows, k, v, out_rows, lse_rows, rows, *rest)


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
    """dq (zeros at inactive rows, or at the rows only), dk and dv.

    Args:
        dout: of all rows.
        q_rows, out_rows, lse_rows: from :func:`keep_rows`.
        rows: the active rows, int64 (A,), or (B or 1, A) padded with −1.
    """
    padded = has_padding(rows)
    read = rows.clamp_min(0) if padded else rows
    dout_rows = gather_rows(dout, read)
    if padded:
        dout_rows = zero_padding(dout_rows, rows)
    bias = rows_bias(rows, k, key_mask, window, block_size)
    dq, dk, dv = attend_backward(dout_rows, q_rows, k, v, out_rows, lse_rows, bias, scale)
    if grad_rows == "keys":
        key_rows = (gather_rows(grad, read) for grad in (dk, dv))
        if padded:
            key_rows = (zero_padding(grad, rows) for grad in key_rows)
        dk, dv = (spread_rows(grad, read, k.shape[2]) for grad in key_rows)
    return (dq.contiguous() if compact_dq else spread_rows(dq, read, dout.shape[2])), dk, dv
