"""Bidirectional attention of given query rows against all keys, from PyTorch's kernels.

The primitive that the attention ops' library paths share. A *bias* is an additive mask,
broadcastable to (B, 1, A, Lk), of the query's dtype or a wider one: −inf where a key is not
visible, and 0, or the bias of a key mask, where it is. A query that sees no key gives zeros.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from boe_kernels._key_mask import bias_of, seen_keys
from boe_kernels._rows import empty_by_rows, pad_rows, with_unit_stride

_cpu_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def visibility(
    query_rows: Tensor,
    key_rows: Tensor,
    key_mask: Tensor | None,
    window: int | None,
    block_size: int | None,
) -> Tensor | None:
    """Which keys each query row sees, as bool broadcastable to (B, 1, A, Lk).

    Args:
        query_rows: int64 (B or 1, A), positions of the queries; −1 for padding.
        key_rows: int64 (Lk,), positions of the keys.
        key_mask: (B, Lk), bool or floating, as in ``_key_mask``.
        window: keys farther than this from the query are not seen.
        block_size: keys beyond the end of the query's block are not seen.
    """
    visible = seen_keys(key_mask)
    queries = query_rows.clamp_min(0).unsqueeze(-1)
    if window is not None:
        visible = _both(visible, ((queries - key_rows).abs() <= window).unsqueeze(1))
    if block_size is not None:
        visible = _both(visible, (key_rows < block_end(queries, block_size)).unsqueeze(1))
    return visible


def block_end(rows: Tensor, block_size: int) -> Tensor:
    """The first row after the block that each row lies in."""
    return (rows // block_size + 1) * block_size


def _both(visible: Tensor | None, further: Tensor) -> Tensor:
    return further if visible is None else visible & further


def as_bias(
    visible: Tensor | None, dtype: torch.dtype, key_mask: Tensor | None = None
) -> Tensor | None:
    """The bias of what is visible, with that of the key mask where it has one."""
    if visible is None:
        return None
    of_keys = bias_of(key_mask, dtype)
    if of_keys is not None:
        return of_keys.masked_fill(~visible, -torch.inf)
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, -torch.inf)


def keys_bias(key_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias of queries that all see the same keys: (B, 1, 1, Lk)."""
    of_keys = bias_of(key_mask, dtype)
    return as_bias(seen_keys(key_mask), dtype) if of_keys is None else of_keys


def rows_bias(
    query_rows: Tensor,
    k: Tensor,
    key_mask: Tensor | None,
    window: int | None,
    block_size: int | None,
) -> Tensor | None:
    """The bias of the given query rows, (A,) or (B or 1, A), against all keys ``k``."""
    if window is None and block_size is None:
        return keys_bias(key_mask, k.dtype)
    keys = torch.arange(k.shape[2], device=k.device)
    visible = visibility(pad_rows(query_rows), keys, key_mask, window, block_size)
    return as_bias(visible, k.dtype, key_mask)


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention output (B, Hq, A, D) and, on the CPU, its log-sum-exp (B, Hq, A).

    The log-sum-exp of a query that sees no key is −∞. Other devices' kernels do not all
    return it; there it is empty, and :func:`attend_backward` recomputes what it needs.
    """
    on_cpu = q.device.type == "cpu"
    if q.numel() == 0 or k.numel() == 0:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        return out, _lse_of_nothing(q) if on_cpu else _no_lse(q)
    if not on_cpu:
        return _public_sdpa(q, k, v, bias, scale), _no_lse(q)
    q, k, v = _for_cpu_kernel(q, k, v)
    out, lse = _cpu_forward(q, k, v, attn_mask=bias, scale=scale)
    if bias is not None:
        # The kernel gives 0 there.
        lse = lse.masked_fill(_sees_nothing(bias).squeeze(-1), -torch.inf)
    return out, lse


def _for_cpu_kernel(*tensors: Tensor) -> Iterator[Tensor]:
    """PyTorch's kernel takes neighbours in the last dimension to be neighbours in memory, and
    checks nothing: its public function, which copies others, gives no log-sum-exp."""
    return map(with_unit_stride, tensors)


def _sees_nothing(bias: Tensor) -> Tensor:
    return (bias == -torch.inf).all(dim=-1, keepdim=True)


def attend_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`attend` with respect to q, k and v, in their head counts.

    They lie in memory as PyTorch's CPU kernel leaves them, which is (B, L, H, D).
    """
    if q.numel() == 0 or k.numel() == 0:
        return gradient_layout(q), gradient_layout(k), gradient_layout(v)
    if q.device.type == "cpu":
        dout, q, k, v, out = _for_cpu_kernel(dout, q, k, v, out)
        if bias is not None:
            lse = lse.masked_fill(lse == -torch.inf, 0.0)
        return _cpu_backward(dout, q, k, v, out, lse, 0.0, False, attn_mask=bias, scale=scale)
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        again = _public_sdpa(q, k, v, bias, scale)
        dq, dk, dv = torch.autograd.grad(again, (q, k, v), dout)
    return _as_kernel_lays_out(dq), _as_kernel_lays_out(dk), _as_kernel_lays_out(dv)


def _as_kernel_lays_out(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def gradient_layout(like: Tensor) -> Tensor:
    """Zeros of the shape of ``like``, laid out as the gradients are."""
    return empty_by_rows(like).zero_()


def _public_sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    # With no causal mask every query row stands alone, so the heads of a group can be
    # laid out as further rows of one head: no backend has to expand k and v.
    if groups > 1:
        q = rearrange(q, "b (h g) l d -> b h (g l) d", g=groups)
        if bias is not None and bias.shape[2] > 1:
            bias = bias.repeat(1, 1, groups, 1)
    if bias is None:
        out = scaled_dot_product_attention(q, k, v, scale=scale)
        return rearrange(out, "b h (g l) d -> b (h g) l d", g=groups)
    # Off the CPU the kernels take no bias that is wider than the queries.
    bias = bias.to(q.dtype)
    # Backends differ on rows that see nothing (zeros, NaN): let such rows see all keys,
    # and drop what they produce, which also drops their gradients.
    blind = _sees_nothing(bias)
    bias = bias.masked_fill(blind, 0.0).expand(*q.shape[:3], k.shape[2])
    out = scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    out = out.masked_fill(blind, 0.0)
    return rearrange(out, "b h (g l) d -> b (h g) l d", g=groups)


def _lse_of_nothing(q: Tensor) -> Tensor:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_full(q.shape[:3], -torch.inf, dtype=dtype)


def _no_lse(q: Tensor) -> Tensor:
    return q.new_empty((*q.shape[:2], 0), dtype=torch.float32)
