"""The public function of active-row attention."""

from __future__ import annotations

import math

from torch import Tensor

from boe_kernels._arguments import (
    check_attention_tensors,
    check_band,
    finite_number,
    require_alike,
    require_shape,
    require_tensor,
)
from boe_kernels._dispatch import decide, note_path
from boe_kernels._key_mask import checked_key_mask, require_constant_bias
from boe_kernels._rows import check_rows, pad_rows
from boe_kernels.row_attention import op
from boe_kernels.row_attention.reference import reference


def active_row_attention(
    q_rows: Tensor,
    k_rows: Tensor,
    v_rows: Tensor,
    k: Tensor,
    v: Tensor,
    row_idx: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    block_size: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of the active rows of a canvas whose other rows are frozen.

    |A| queries attend to all Lk keys. At the rows in ``row_idx`` keys and values are
    ``k_rows`` and ``v_rows``, which get gradients; elsewhere they are ``k`` and ``v``,
    which are constants, whatever they hold at the active rows. The forward and dq cost
    O(|A|·Lk·D); dk and dv come at the active rows only. This is the attention of a
    replayed forward: the adjoint of a whole network restricted to the active rows.

    Args:
        q_rows: (B, Hq, A, D), float64/float32/bfloat16/float16, any strides.
        k_rows, v_rows: (B, Hkv, A, D), live keys and values at the active rows.
        k, v: (B, Hkv, Lk, D), the frozen keys and values of the whole canvas.
        row_idx: int64 (A,) shared by the batch, or int64 (B, A) padded with −1. Padding
            rows give zeros and get none. Bool masks are not accepted: the order of
            ``q_rows`` must be known.
        key_padding_mask, key_bias, scale, window, block_size, backend: as in
            ``active_query_attention``; positions are those of ``row_idx``.

    Returns:
        (B, Hq, A, D) of q_rows' dtype.

    Raises:
        TypeError, ValueError, IndexError: an argument is not as above.
    """
    check_attention_tensors(("q_rows", q_rows), ("k", k), ("v", v), key_padding_mask)
    key_mask = checked_key_mask(key_padding_mask, key_bias, ("q_rows", q_rows), k)
    batch, _, count, width = q_rows.shape
    for name, value in (("k_rows", k_rows), ("v_rows", v_rows)):
        require_tensor(name, value, rank=4)
        require_alike(name, value, "q_rows", q_rows)
        require_shape(name, value, (batch, k.shape[1], count, width), "(B, Hkv, A, D)")
    check_band(window, block_size)
    check_rows("row_idx", row_idx, batch, k.shape[2], like=q_rows, allow_mask=False)
    if row_idx.shape[-1] != count:
        raise ValueError(
            f"row_idx must name the {count} rows of q_rows, got shape {tuple(row_idx.shape)}"
        )
    rows = pad_rows(row_idx)
    scale = 1.0 / math.sqrt(width) if scale is None else finite_number("scale", scale)
    path = decide(op.NAME, backend, q_rows.device, q_rows.dtype, q_rows.shape[-1]).path
    inputs = (q_rows, k_rows, v_rows, k, v, rows, key_mask, scale, window, block_size)
    if path == "reference":
        note_path(op.NAME, path)
        return reference(*inputs)
    if key_bias is not None:
        require_constant_bias(op.NAME, key_bias)
    return op.forward_op(*inputs, path)[0]
