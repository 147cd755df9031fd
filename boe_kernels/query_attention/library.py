"""ActiveQueryAttention from PyTorch's own attention kernels.

Forward: one kernel over all queries. Backward: gather the active rows of q, out, dout
and the log-sum-exp, run the attention backward on them against the full k and v, and
spread dq over zeros: O(|A|·L·D) time, O(|A|·D) extra memory besides the gradients.
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
from boe_kernels._rows import gather_rows, spread_rows, zero_padding

# A windowed forward runs in blocks of queries, so that no mask spans all pairs.
_QUERY_BLOCK = 256


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    length = q.shape[2]
    if window is None:
        return attend(q, k, v, as_bias(padding_visibility(key_padding_mask), q.dtype), scale)
    outs, lses = [], []
    for start in range(0, max(length, 1), _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, length)
        first, last = max(0, start - window), min(length, stop + window)
        padding = None if key_padding_mask is None else key_padding_mask[:, first:last]
        visible = visibility(
            torch.arange(start, stop, device=q.device).unsqueeze(0),
            torch.arange(first, last, device=q.device),
            padding,
            window,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """dq (zeros at inactive rows), dk and dv."""
    length = q.shape[2]
    dout_rows = zero_padding(gather_rows(dout, rows), rows)
    lse_rows = gather_rows(lse.unsqueeze(-1), rows).squeeze(-1) if lse.numel() else lse
    dq_rows, dk, dv = attend_backward(
        dout_rows,
        gather_rows(q, rows),
        k,
        v,
        gather_rows(out, rows),
        lse_rows,
        rows_bias(rows, k, key_padding_mask, window),
        scale,
    )
    return spread_rows(dq_rows, rows, length), dk, dv
