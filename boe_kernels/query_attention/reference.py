"""The definition of ActiveQueryAttention."""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._autocast import in_given_dtypes
from boe_kernels._key_mask import bias_of
from boe_kernels._masked_sdpa import visibility


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    scale: float,
    bias: Tensor | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ + bias) v over the visible keys, in plain PyTorch.

    Args:
        q: (B, Hq, A, D). k, v: (B, Hkv, Lk, D), Hq a multiple of Hkv.
        visible: bool, broadcastable to (B, 1, A, Lk); ``None`` for all keys.
        bias: broadcastable to (B, 1, A, Lk), −∞ at keys that are not visible only.
    """
    compute = torch.promote_types(q.dtype, torch.float32)
    groups = q.shape[1] // k.shape[1]
    keys = k.to(compute).repeat_interleave(groups, dim=1)
    values = v.to(compute).repeat_interleave(groups, dim=1)
    scores = (q.to(compute) * scale) @ keys.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
        sees_any = visible.any(dim=-1, keepdim=True)
        scores = torch.where(sees_any, scores, 0.0)
        return (torch.where(sees_any, scores.softmax(dim=-1), 0.0) @ values).to(q.dtype)
    return (scores.softmax(dim=-1) @ values).to(q.dtype)


@in_given_dtypes
def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
    grad_rows: str,
) -> Tensor:
    """Dense attention whose output is a constant at inactive rows (eq. 30 of the paper).

    Args:
        rows: int64 (B or 1, A), active query rows; −1 for padding.
        grad_rows: "keys" makes keys and values at inactive rows constants too.
    """
    positions = torch.arange(q.shape[2], device=q.device)
    keys = torch.arange(k.shape[2], device=q.device)
    active = (rows.unsqueeze(-1) == positions).any(dim=1)[:, None, :, None]
    if grad_rows == "keys":
        k, v = torch.where(active, k, k.detach()), torch.where(active, v, v.detach())
    visible = visibility(positions.unsqueeze(0), keys, key_mask, window, block_size)
    out = dense_attention(q, k, v, visible, scale, bias_of(key_mask, q.dtype))
    return torch.where(active, out, out.detach())
