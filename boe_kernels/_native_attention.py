"""Calls of the native attention kernels (``csrc/attention.cpp``)."""

from __future__ import annotations

from ctypes import Structure, addressof, c_double, c_int64, c_void_p
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from boe_kernels._masked_sdpa import keys_bias
from boe_kernels._native import DTYPES
from boe_kernels._native_library import library


class _Heads(Structure):
    """The twin of ``boe_heads`` in ``csrc/boe_kernels.h``."""

    _fields_: ClassVar = [
        ("data", c_void_p),
        *((name, c_int64) for name in ("batch_stride", "head_stride", "row_stride")),
        ("at_positions", c_int64),
    ]


_TENSORS = ("q", "k", "v", "out", "lse", "dout", "dq", "dk", "dv")


class _Call(Structure):
    """The twin of ``boe_attention``."""

    _fields_: ClassVar = [
        *((name, c_int64) for name in ("dtype", "batch", "q_heads", "kv_heads")),
        *((name, c_int64) for name in ("rows", "keys", "width")),
        ("scale", c_double),
        *((name, c_int64) for name in ("window", "block_size")),
        *(("positions", c_void_p), ("positions_stride", c_int64)),
        *(("key_positions", c_void_p), ("key_positions_stride", c_int64)),
        *(("key_bias", c_void_p), ("key_bias_stride", c_int64)),
        *((name, _Heads) for name in _TENSORS),
        ("dq_rows", c_int64),
    ]


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
    call = _Call()
    for name, value in tensors.items():
        if value is None:
            continue
        at_positions = isinstance(value, AtPositions)
        tensor = value.canvas if isinstance(value, AtPositions) else value
        # Results have room of their own with unit stride.
        if name != "lse" and tensor.stride(3) != 1:
            tensor = tensor.contiguous()
        alive.append(tensor)
        setattr(call, name, _Heads(tensor.data_ptr(), *tensor.stride()[:3], at_positions))
        if name == "q":
            call.q_heads, call.rows = tensor.shape[1:3]
            call.dtype = DTYPES[tensor.dtype]
        elif name == "dq":
            call.dq_rows = tensor.shape[2]
        elif name == "k":
            call.batch, call.kv_heads, call.keys, call.width = tensor.shape
    call.scale = sight.scale
    call.window = -1 if sight.window is None else sight.window
    call.block_size = sight.block_size or 0
    if sight.rows is not None:
        rows = sight.rows.contiguous()
        alive.append(rows)
        call.rows = rows.shape[-1]
        call.positions, call.positions_stride = rows.data_ptr(), _batch_stride(rows)
    if sight.keys is not None:
        keys = sight.keys.contiguous()
        alive.append(keys)
        call.key_positions, call.key_positions_stride = keys.data_ptr(), _batch_stride(keys)
    bias = keys_bias(sight.key_mask, torch.float32)
    if bias is not None:
        bias = bias[:, 0, 0].contiguous()
        alive.append(bias)
        call.key_bias, call.key_bias_stride = bias.data_ptr(), bias.stride(0)
    library().run(kernel, addressof(call))


def _batch_stride(rows: Tensor) -> int:
    return 0 if rows.dim() == 1 or rows.shape[0] == 1 else rows.stride(0)
