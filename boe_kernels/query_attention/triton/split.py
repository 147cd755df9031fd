"""The backward of many rows: dQ from one kernel, dK and dV from another.

The first also leaves lse and δ of the rows; the second also adds up the parts of dQ, where
there are any. Where there are too few tiles of rows to occupy the device, each is given to
several programs, one per stretch of the keys, each of which leaves a part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._attention_launch import (
    Cut,
    bounded,
    ceil_div,
    constants,
    first_occupying,
    keys_per_step,
    programs_wanted,
    strides,
    tiles_for,
)
from boe_kernels._triton import launch
from boe_kernels._triton_rows import ROWS_TO_ZERO
from boe_kernels.query_attention.triton.key_gradient import bwd_dkdv_kernel
from boe_kernels.query_attention.triton.query_gradient import ROWS_TO_SUM, bwd_dq_kernel


def split(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    live_k: Tensor | None,
    live_v: Tensor | None,
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    rows_stride: int,
    slots: Tensor | None,
    mask: Tensor | None,
    mask_stride: int,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    scale: float,
    window: int | None,
    block_size: int | None,
    *,
    keys: str,
    compact_q: bool,
    compact_dq: bool,
) -> None:
    """Fill dq, dk and dv.

    Args:
        live_k, live_v, slots: keys and values by slot, which replace those of k and v, and
            the slot map; or None.
        keys: which keys dk and dv are for: "all"; "rows", those in ``rows``, zeros elsewhere;
            "slots", the live ones.
        compact_q: q, dout, out and lse are stored by slot. compact_dq: so is dq.
    """
    batch, heads = q.shape[:2]
    length = lse.shape[2]
    kv_heads, key_length = k.shape[1:3]
    group, count = heads // kv_heads, rows.shape[1]
    virtual = count * group
    hidden = window is not None or block_size is not None
    form = "" if keys == "all" else "rows_"
    window, block_size = bounded(window, k), bounded(block_size, k)
    live = () if live_k is None else (live_k, live_v)
    shape = constants(q, k, v, *live, out, dout, dq, dk, dv)

    tile = first_occupying(
        q, tiles_for(f"{form}dq", q, hidden), lambda tile: kv_heads * ceil_div(virtual, tile.held)
    )
    row_tiles = max(1, ceil_div(virtual, tile.held))
    capacity = row_tiles * tile.held
    streamed = keys_per_step(tile, mask)
    cut = Cut.of(key_length, programs_wanted(q, tile) / (kv_heads * row_tiles), streamed)
    parts = None
    if cut.parts > 1:
        parts = q.new_empty(
            (cut.parts, batch, kv_heads, capacity, shape["BLOCK_D"]), dtype=torch.float32
        )
    key_count = key_length if keys == "all" else count
    key_tile = first_occupying(
        q,
        tiles_for(f"{form}dkdv", q, hidden),
        lambda tile: kv_heads * ceil_div(key_count, tile.held),
    )
    # The kernel of dK and dV reads one step beyond the last.
    stats = q.new_empty(2 * batch * kv_heads * capacity + key_tile.streamed, dtype=torch.float32)
    zero_programs = 0 if compact_dq else ceil_div(length, ROWS_TO_ZERO)
    launch(
        bwd_dq_kernel,
        (kv_heads, batch, row_tiles * cut.parts + zero_programs),
        dout,
        q,
        k,
        v,
        live_k,
        live_v,
        out,
        lse,
        rows,
        slots,
        mask,
        dq,
        parts,
        stats,
        *dout.stride(),
        *strides(q),
        *strides(k),
        *strides(v),
        *strides(live_k),
        *strides(live_v),
        *strides(out),
        rows_stride,
        0 if slots is None or slots.shape[0] == 1 else key_length,
        mask_stride,
        *strides(dq),
        scale,
        window,
        block_size,
        count,
        length,
        key_length,
        group,
        row_tiles,
        cut.parts,
        cut.stretch,
        COMPACT_Q=compact_q,
        COMPACT_DQ=compact_dq,
        **shape,
        BLOCK_M=tile.held,
        BLOCK_N=streamed,
        **tile.options,
    )

    key_tiles = ceil_div(key_count, key_tile.held)
    sum_programs = 0 if parts is None else ceil_div(virtual, ROWS_TO_SUM)
    zero_programs = ceil_div(key_length, ROWS_TO_ZERO) if keys == "rows" else 0
    if keys == "slots" and live_k is not None and live_v is not None:
        k, v = live_k, live_v
    launch(
        bwd_dkdv_kernel,
        (kv_heads, batch, key_tiles + sum_programs + zero_programs),
        dout,
        q,
        k,
        v,
        rows,
        mask,
        stats,
        dk,
        dv,
        dq,
        parts,
        *dout.stride(),
        *strides(q),
        *strides(k),
        *strides(v),
        rows_stride,
        mask_stride,
        *strides(dk),
        *strides(dv),
        *strides(dq),
        scale,
        window,
        block_size,
        count,
        key_length,
        group,
        capacity,
        cut.parts,
        key_tiles,
        sum_programs,
        KEYS=keys,
        COMPACT_Q=compact_q,
        COMPACT_DQ=compact_dq,
        RAGGED=rows_stride != 0,
        **shape,
        BLOCK_M=key_tile.streamed,
        BLOCK_N=key_tile.held,
        SUM_M=ROWS_TO_SUM,
        **key_tile.options,
    )
