"""Calls of the native attention kernels (``csrc/attention.cpp``)."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

import torch
from torch import Tensor

from boe_kernels._masked_sdpa import keys_bias
from boe_kernels._native import DTYPES
from boe_kernels._native_library import library

_TENSORS = ("q", "k", "v", "out", "lse", "dout", "dq", "dk", "dv")
_ABSENT = (0, 0, 0, 0, 0)

# A window or a block this large holds every canvas; sums with larger ones could overflow.
_FARTHEST = 2**31 - 1

# ``boe_attention`` of ``csrc/boe_kernels.h``, field by field, nine times ``boe_heads`` in it.
# Packed at once, which is quicker than filling a ctypes structure field by field.
_CALL = Struct("@7qd2q" + "Pq" * 3 + "P4q" * len(_TENSORS) + "q")


class Sight(NamedTuple):
    """Who sees whom: positions of rows and keys, and what hides keys.

    Attributes:
        rows: int64 (A,) or (B or 1, A), −1 for padding; ``None`` for 0, 1, 2, …
        key_mask: as in ``_key_mask``, by position.
        keys: the keys' positions, like ``rows``.
    """

    scale: float
    rows: Tensor | None
    key_mask: Tensor | None
    window: int | None
    block_size: int | None
    keys: Tensor | None = None


class AtPositions(NamedTuple):
    """A tensor of a whole canvas: the rows are found at their positions in it."""

    canvas: Tensor


Rows = Tensor | AtPositions


def attention_forward(q: Rows, k: Tensor, v: Tensor, sight: Sight, out: Tensor) -> Tensor:
    """Write the output (B, Hq, A, D) to ``out``; returns the log-sum-exp, float32 (B, Hq, A)."""
    lse = out.new_empty(out.shape[:3], dtype=torch.float32)
    _run("boe_attention_forward", sight, q=q, k=k, v=v, out=out, lse=lse)
    return lse


def attention_backward(
    dout: Rows,
    q: Rows,
    k: Tensor,
    v: Tensor,
    out: Rows,
    lse: Rows,
    sight: Sight,
    *,
    dq: Rows | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
) -> None:
    """Write the gradients that there is room for: dq, or dk and dv, or all."""
    _run(
        "boe_attention_backward",
        sight,
        **{"dout": dout, "q": q, "k": k, "v": v, "out": out, "lse": lse},
        **{"dq": dq, "dk": dk, "dv": dv},
    )


def key_row_gradients(
    dout: Rows, q: Rows, k_rows: Tensor, v_rows: Tensor, out: Rows, lse: Rows, sight: Sight
) -> tuple[Tensor, Tensor]:
    """dk and dv of the keys at ``sight.rows`` alone, |A|×|A| work; zeros at padding.

    Args:
        k_rows, v_rows: (B, Hkv, A, D), finite at padding.
    """
    dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k_rows, v_rows))
    among_rows = sight._replace(keys=sight.rows)
    attention_backward(dout, q, k_rows, v_rows, out, lse, among_rows, dk=dk, dv=dv)
    return dk, dv


def _run(kernel: str, sight: Sight, **tensors: Rows | None) -> None:
    alive: list[Tensor] = []
    heads: list[int] = []
    for name in _TENSORS:
        value = tensors.get(name)
        if value is None:
            heads += _ABSENT
            continue
        canvas = _canvas_of(value)
        # Results have room of their own with unit stride.
        tensor = canvas if name == "lse" or canvas.stride(3) == 1 else canvas.contiguous()
        alive.append(tensor)
        heads += (tensor.data_ptr(), *tensor.stride()[:3], canvas is not value)
    q, k, dq = alive[0], alive[1], tensors.get("dq")
    positions = _pointer(sight.rows, alive)
    key_positions = _pointer(sight.keys, alive)
    bias = keys_bias(sight.key_mask, torch.float32)
    key_bias = _pointer(None if bias is None else bias[:, 0, 0], alive)
    batch, kv_heads, keys, width = k.shape
    call = _CALL.pack(
        DTYPES[q.dtype],
        batch,
        q.shape[1],
        kv_heads,
        q.shape[2] if sight.rows is None else sight.rows.shape[-1],
        keys,
        width,
        sight.scale,
        -1 if sight.window is None else min(sight.window, _FARTHEST),
        min(sight.block_size or 0, _FARTHEST),
        *positions,
        *key_positions,
        *key_bias,
        *heads,
        0 if dq is None else _canvas_of(dq).shape[2],
    )
    library().run(kernel, call)


def _canvas_of(rows: Rows) -> Tensor:
    return rows.canvas if isinstance(rows, AtPositions) else rows


def _pointer(rows: Tensor | None, alive: list[Tensor]) -> tuple[int, int]:
    """Address and batch stride of (A,) or (B or 1, A), which ``alive`` keeps from being freed."""
    if rows is None:
        return 0, 0
    rows = rows.contiguous()
    alive.append(rows)
    shared = rows.dim() == 1 or rows.shape[0] == 1
    return rows.data_ptr(), 0 if shared else rows.stride(0)
