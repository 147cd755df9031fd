"""The public function of the attention mass."""

from __future__ import annotations

import math

from torch import Tensor

from boe_kernels._arguments import (
    check_attention_tensors,
    check_band,
    finite_number,
    require_floating,
    require_same_device,
    require_shape,
    require_tensor,
)
from boe_kernels._dispatch import decide, note_path
from boe_kernels._key_mask import checked_key_mask
from boe_kernels._rows import check_rows, pad_rows
from boe_kernels.attention_mass import op
from boe_kernels.attention_mass.reference import reference


def attention_mass(
    q_rows: Tensor,
    k: Tensor,
    lse_rows: Tensor,
    weights: Tensor | None = None,
    *,
    row_idx: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    block_size: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """The attention that each key gets from given query rows, summed over rows and heads.

    mass_j = Σ_h Σ_r w_r · exp(scale · q_hr · k_hj + bias_j − lse_hr), over the keys j that row r
    sees. With the log-sum-exps of a forward at hand no softmax is needed: O(S·Lk·D) time, and
    memory for the result and one block of scores. It ranks the rows of a canvas by how much
    the probes read from them. A constant: no gradient passes.

    Args:
        q_rows: (B, Hq, S, D), the query rows; float64/float32/bfloat16/float16, any strides.
        k: (B, Hkv, Lk, D) of q_rows' dtype. Hq must be a multiple of Hkv; grouped heads are
            not expanded.
        lse_rows: (B, Hq, S), floating, the natural log-sum-exp of each query row over the
            keys that it sees, as ``active_query_forward`` returns it. A row with −∞ (it saw
            no key) contributes nothing.
        weights: (B, S), floating, the weight of each row; 1 by default.
        row_idx: int64 (S,) shared by the batch or (B, S): the rows' positions among the
            keys. −1 marks padding, which contributes nothing whatever it holds. Needed with
            ``window`` or ``block_size``; otherwise it may be left out.
        key_padding_mask: bool (B, Lk), True at real keys.
        key_bias: (B, Lk), as in ``active_query_attention``; ``lse_rows`` are then those of a
            forward with the bias.
        scale: factor on q·k; 1/√D by default.
        window, block_size: which keys a row sees, as in ``active_query_attention``.
        backend: "auto", "triton", "library" or "reference".

    Returns:
        (B, Lk), float32 (float64 for float64 queries).

    Raises:
        TypeError, ValueError, IndexError: an argument is not as above.
    """
    check_attention_tensors(("q_rows", q_rows), ("k", k), ("k", k), key_padding_mask)
    key_mask = checked_key_mask(key_padding_mask, key_bias, ("q_rows", q_rows), k)
    batch, heads, count, width = q_rows.shape
    key_length = k.shape[2]
    require_tensor("lse_rows", lse_rows)
    require_floating("lse_rows", lse_rows)
    require_same_device("lse_rows", lse_rows, "q_rows", q_rows)
    require_shape("lse_rows", lse_rows, (batch, heads, count), "(B, Hq, S)")
    if weights is not None:
        require_tensor("weights", weights)
        require_floating("weights", weights)
        require_same_device("weights", weights, "q_rows", q_rows)
        require_shape("weights", weights, (batch, count), "(B, S)")
    check_band(window, block_size)
    for name, value in (("window", window), ("block_size", block_size)):
        if value is not None and row_idx is None:
            raise ValueError(f"row_idx is needed with {name}: it tells which keys a row sees")
    rows = None
    if row_idx is not None:
        check_rows("row_idx", row_idx, batch, key_length, like=q_rows, allow_mask=False)
        require_shape("row_idx", row_idx, (*row_idx.shape[:-1], count), "(..., S)")
        rows = pad_rows(row_idx)
    scale = 1.0 / math.sqrt(width) if scale is None else finite_number("scale", scale)
    path = decide(op.NAME, backend, q_rows.device, q_rows.dtype, q_rows.shape[-1]).path
    inputs = (
        q_rows.detach(),
        k.detach(),
        lse_rows.detach(),
        None if weights is None else weights.detach(),
        rows,
        None if key_mask is None else key_mask.detach(),
        scale,
        window,
        block_size,
    )
    if path == "reference":
        note_path(op.NAME, path)
        return reference(*inputs)
    return op.forward_op(*inputs, path)
