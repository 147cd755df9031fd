"""Active-row attention by the native CPU kernels (``csrc/attention.cpp``).

As in the library path one copy of the keys and values holds the live rows. The backward
takes the gradients of keys and values among the rows alone: |A|×|A| work, not |A|×Lk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._native_attention import (
    Sight,
    attention_backward,
    attention_forward,
    key_row_gradients,
)
from boe_kernels._rows import empty_by_rows, replace_rows


def forward(
    q_rows: Tensor,
    k_rows: Tensor,
    v_rows: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output rows, in memory (B, A, Hq, D), their log-sum-exp, merged keys and values."""
    keys = replace_rows(k, rows, k_rows)
    values = replace_rows(v, rows, v_rows)
    out = empty_by_rows(q_rows)
    sight = Sight(scale, rows, key_mask, window, block_size)
    return out, attention_forward(q_rows, keys, values, sight, out), keys, values


def backward(
    dout: Tensor,
    q_rows: Tensor,
    k_rows: Tensor,
    v_rows: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    key_mask: Tensor | None,
    scale: float,
    window: int | None,
    block_size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv at the rows, contiguous."""
    sight = Sight(scale, rows, key_mask, window, block_size)
    dq = torch.empty_like(q_rows, memory_format=torch.contiguous_format)
    attention_backward(dout, q_rows, keys, values, out, lse, sight, dq=dq)
    return dq, *key_row_gradients(dout, q_rows, k_rows, v_rows, out, lse, sight)
