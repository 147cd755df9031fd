"""Device code that the attention kernels share.

Scores are kept in base 2: P = 2^(s·log₂e − m). Log-sum-exps are natural in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from boe_kernels._triton_rows import load_tile, row_pointers

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
INFINITY: tl.constexpr = tl.constexpr(float("inf"))
LEAST_BIAS: tl.constexpr = tl.constexpr(-2.0e38)
"""Of a key that is seen: more is as little as that, in float32."""


@triton.jit
def dot(a, b):
    """a·b in float32; float32 operands are not rounded."""
    return tl.dot(a, b, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def add_dot(a, b, acc):
    """acc + a·b in float32."""
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=tl.float32)


@triton.constexpr_function
def is_wide(dtype, width):
    """Whether a lane cannot hold ``width`` elements of two rows, as it does for a product
    without matrix units."""
    return dtype == tl.float32 and width > 128


@triton.jit
def row_products(a, b):
    """a·bᵀ in float32: the products of the rows of a and b, (M, D) and (N, D).

    Of wide rows 64 elements at a time.
    """
    if is_wide(a.dtype, a.shape[1]):
        a_low, a_high = halves(a)
        b_low, b_high = halves(b)
        a0, a1 = halves(a_low)
        b0, b1 = halves(b_low)
        a2, a3 = halves(a_high)
        b2, b3 = halves(b_high)
        s = dot(a0, tl.trans(b0))
        s = add_dot(a1, tl.trans(b1), s)
        s = add_dot(a2, tl.trans(b2), s)
        return add_dot(a3, tl.trans(b3), s)
    else:
        return dot(a, tl.trans(b))


@triton.jit
def halves(x):
    """The first and the second half of the columns of x."""
    pairs = tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2])
    return tl.split(tl.permute(pairs, [0, 2, 1]))


# --- visibility ---------------------------------------------------------------------


@triton.jit
def is_visible(query, key, allowed, window, block_size):
    """``allowed``, less the pairs that the window or the blocks hide; the shapes broadcast."""
    if window is not None:
        allowed = allowed & (key - query <= window) & (query - key <= window)
    if block_size is not None:
        allowed = allowed & (key < (query // block_size + 1) * block_size)
    return allowed


@triton.jit
def seen_keys(row, key_length, window, block_size):
    """[begin, end) holds every key that some row of a tile sees; empty if all are padding."""
    last_row = tl.max(row)
    begin = 0
    end = tl.where(last_row >= 0, key_length, 0)
    if window is not None:
        first_row = tl.min(tl.where(row >= 0, row, key_length))
        begin = tl.maximum(first_row - window, 0)
        end = tl.minimum(end, last_row + window + 1)
    if block_size is not None:
        end = tl.minimum(end, (last_row // block_size + 1) * block_size)
    return begin, end


@triton.jit
def sees_any(row, first_key, last_key, window, block_size):
    """Whether some row of a tile (−1: padding) may see a key in [first_key, last_key]."""
    near = row >= 0
    if window is not None:
        near = near & (first_key - row <= window) & (row - last_key <= window)
    if block_size is not None:
        near = near & (first_key < (row // block_size + 1) * block_size)
    return tl.max(near.to(tl.int32), axis=0) > 0


@triton.jit
def key_rows(
    k_ptr,
    v_ptr,
    live_k_ptr,
    live_v_ptr,
    slots_ptr,
    k_strides,
    v_strides,
    live_k_strides,
    live_v_strides,
    slots_stride,
    batch,
    kv_head,
    key,
    keep,
    ALIGN: tl.constexpr,
):
    """Pointers to the rows of k and v; to the live ones of keys that have a slot in the map.

    ``slots_ptr``: the slot map, int32, or None where there are no live keys.
    """
    k_rows = row_pointers(k_ptr, k_strides, batch, kv_head, key, ALIGN)
    v_rows = row_pointers(v_ptr, v_strides, batch, kv_head, key, ALIGN)
    if slots_ptr is not None:
        slots = slots_ptr + tl.cast(batch, tl.int64) * slots_stride + key
        slot = tl.load(slots, mask=keep, other=-1)
        live_k_rows = row_pointers(live_k_ptr, live_k_strides, batch, kv_head, slot, ALIGN)
        live_v_rows = row_pointers(live_v_ptr, live_v_strides, batch, kv_head, slot, ALIGN)
        k_rows = tl.where(slot >= 0, live_k_rows, k_rows)
        v_rows = tl.where(slot >= 0, live_v_rows, v_rows)
    return k_rows, v_rows


@triton.jit
def allowed_keys(key, keep, mask_ptr, mask_stride, batch):
    """Those of the kept keys that are no padding.

    ``mask_ptr``: the key mask, bool or float32, or None.
    """
    if mask_ptr is not None and mask_ptr.dtype.element_ty != tl.float32:
        places = mask_ptr + tl.cast(batch, tl.int64) * mask_stride + key
        keep = keep & (tl.load(places, mask=keep, other=0) != 0)
    return keep


@triton.jit
def key_biases(key, keep, mask_ptr, mask_stride, batch):
    """The biases of keys in base 2, −∞ where one is not seen or kept. The mask is float32."""
    places = mask_ptr + tl.cast(batch, tl.int64) * mask_stride + key
    bias = tl.load(places, mask=keep, other=-INFINITY)
    # In base 2 no finite bias may become −∞, which would hide the key.
    return tl.where((bias < LEAST_BIAS) & (bias != -INFINITY), LEAST_BIAS, bias) * LOG2E


@triton.jit
def probabilities(
    s,
    scale_log2,
    lse,
    visible,
    bias,
    KEY_AXIS: tl.constexpr = 1,
    CAPPED: tl.constexpr = True,
):
    """P = 2^(s·scale_log2 + bias − lse), 0 where not visible.

    Args:
        lse: in base 2, of the queries; it and ``visible`` broadcast to s.
        bias: in base 2, of the keys, which lie along KEY_AXIS of s; or None.
        CAPPED: lse is that of the same scores, so that P ≤ 1.
    """
    if bias is None:
        p = tl.exp2(s * scale_log2 - lse)
    else:
        exponent = s * scale_log2 - (lse - tl.expand_dims(bias, 1 - KEY_AXIS))
        if CAPPED:
            # Where biases are so large that lse rounds the rest away, P must not be infinite.
            exponent = tl.minimum(exponent, 0.0, propagate_nan=tl.PropagateNan.ALL)
        p = tl.exp2(exponent)
    return tl.where(visible, p, 0.0)


# --- softmax ------------------------------------------------------------------------


@triton.jit
def attend_tile(q, k, v, visible, bias, acc, top, total, scale_log2):
    """One step of the online softmax; ``scale_log2`` ≥ 0.

    Args:
        visible: bool (M, N), or None where every query sees every key that the bias allows.
        bias: of the keys (N,), in base 2, or None.
        acc, top, total: Σ P v, the maximum m and Σ P of the keys so far.
    """
    s = row_products(q, k)
    if visible is None and bias is None:
        new_top = tl.maximum(top, tl.max(s, axis=1) * scale_log2)
        base = new_top
        p = tl.exp2(s * scale_log2 - base[:, None])
    else:
        s = s * scale_log2
        if bias is not None:
            s += bias[None, :]
        if visible is not None:
            s = tl.where(visible, s, -INFINITY)
        new_top = tl.maximum(top, tl.max(s, axis=1))
        # A query that has seen no key yet must not become NaN through (−∞) − (−∞).
        base = tl.where(new_top == -INFINITY, 0.0, new_top)
        p = tl.exp2(s - base[:, None])
    decay = tl.exp2(top - base)
    total = total * decay + tl.sum(p, axis=1)
    acc = add_dot(p.to(v.dtype), v, acc * decay[:, None])
    return acc, new_top, total


@triton.jit
def finish_softmax(acc, top, total):
    """Output rows and natural log-sum-exp; zeros and −∞ for a query that saw no key."""
    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    return acc / total[:, None], tl.where(blind, -INFINITY, (top + tl.log2(total)) * LN2)


# --- queries of a backward ----------------------------------------------------------


@triton.jit
def load_lse(lse_ptr, batch, head, heads, length, index, keep):
    """Log-sum-exps in base 2 from a contiguous (B, heads, length).

    They are such that P = 0 for queries that saw no key, and for those not kept.
    """
    start = (tl.cast(batch, tl.int64) * heads + head) * length
    lse = tl.load(lse_ptr + start + index, mask=keep, other=INFINITY)
    return tl.where(lse == -INFINITY, INFINITY, lse) * LOG2E


@triton.jit
def load_queries(
    q_ptr,
    q_strides,
    dout_ptr,
    dout_strides,
    out_ptr,
    out_strides,
    batch,
    head,
    index,
    keep,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """q, dO and δ = Σ dO·O of rows ``index`` of query heads ``head``; 0 where not kept.

    ``dout_strides`` has a fourth member: the gradient of a sum comes expanded.
    """
    q_rows = row_pointers(q_ptr, q_strides, batch, head, index, ALIGN)
    dout_rows = row_pointers(dout_ptr, dout_strides, batch, head, index, ALIGN)
    out_rows = row_pointers(out_ptr, out_strides, batch, head, index, ALIGN)
    q = load_tile(q_rows, keep, HEAD_DIM, BLOCK_D)
    dout = load_tile(dout_rows, keep, HEAD_DIM, BLOCK_D, column_stride=dout_strides[3])
    out = load_tile(out_rows, keep, HEAD_DIM, BLOCK_D)
    return q, dout, tl.sum(dout.to(tl.float32) * out.to(tl.float32), axis=1)
