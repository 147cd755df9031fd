"""ActiveQueryAttention from PyTorch's own attention kernels.

Forward: one kernel over all queries. Backward: gather the active rows of q, out, dout
and the log-sum-exp, run the attention backward on them against the full k and v, and
spread dq over zeros: O(|A|·L·D) time, O(|A|·D) extra memory besides the gradients.
PyTorch's backward gives dk and dv at every key; ``grad_rows="keys"`` zeroes them
afterwards and saves nothing here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._masked_sdpa import (
    as_bias,
    attend,
    attend_backward,
    padding_visibility,
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
    key_padding_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
) -> tuple[Tensor, Tensor]:
    """Output (B, Hq, L, D) and log-sum-exp (B, Hq, L), empty where the kernel keeps it."""
    if window is None and block_size is None:
        return attend(q, k, v, as_bias(padding_visibility(key_padding_mask), q.dtype), scale)
    length = q.shape[2]
    outs, lses = [], []
    for start in range(0, max(length, 1), _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, length)
        first = 0 if window is None else max(0, start - window)
        last = length if window is None else min(length, stop + window)
        if block_size is not None:
            last = min(last, ((max(stop, 1) - 1) // block_size + 1) * block_size)
        padding = None if key_padding_mask is None else key_padding_mask[:, first:last]
        visible = visibility(
            torch.arange(start, stop, device=q.device).unsqueeze(0),
            torch.arange(first, last, device=q.device),
            padding,
            window,
            block_size,
        )
        out, lse = attend(
            q[:, :, start:stop],
            k[:, :, first:last],
            v[:, :, first:last],
            as_bias(visible, q.dtype),
            scale,
        )
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    key_padding_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
    grad_rows: str,
    compact_dq: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq (zeros at inactive rows, or at the rows only), dk and dv."""
    padded = has_padding(rows)
    read = rows.clamp_min(0) if padded else rows
    dout_rows = gather_rows(dout, read)
    if padded:
        dout_rows = zero_padding(dout_rows, rows)
    dq, dk, dv = attend_backward(
        dout_rows,
        gather_rows(q, read),
        k,
        v,
        gather_rows(out, read),
        gather_rows(lse.unsqueeze(-1), read).squeeze(-1) if lse.numel() else lse,
        rows_bias(rows, k, key_padding_mask, window, block_size),
        scale,
    )
    if grad_rows == "keys":
        dk, dv = (_only_at(grad, rows, read) for grad in (dk, dv))
    return (dq.contiguous() if compact_dq else spread_rows(dq, rows, q.shape[2])), dk, dv


def _only_at(grad: Tensor, rows: Tensor, read: Tensor) -> Tensor:
    return spread_rows(zero_padding(gather_rows(grad, read), rows), rows, grad.shape[2])
