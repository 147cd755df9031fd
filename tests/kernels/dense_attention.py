"""Dense attention written out in plain PyTorch: the yardstick of the attention tests.

Independent of the package: it shares no code with what it judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from error_bounds import FORWARD_FACTOR, GRADIENT_FACTOR, assert_as_accurate, largest
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def random_qkv(
    batch: int = 2,
    heads: tuple[int, int] = (4, 2),
    length: int = 20,
    key_length: int | None = None,
    width: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and a gradient for the output; ``heads`` are those of q and those of k and v."""
    generator = torch.Generator().manual_seed(seed)
    key_length = length if key_length is None else key_length

    def draw(count: int, rows: int) -> Tensor:
        shape = (batch, count, rows, width)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    keys = [draw(heads[1], key_length) for _ in range(2)]
    return draw(heads[0], length), *keys, draw(heads[0], length)


def active_mask(rows: Tensor, batch: int, length: int) -> Tensor:
    """Any form of an index set as bool (B, L)."""
    if rows.dtype == torch.bool:
        return rows.expand(batch, length)
    mask = torch.zeros(batch, length, dtype=torch.bool, device=rows.device)
    for b, members in enumerate(rows.expand(batch, -1).tolist()):
        mask[b, [row for row in members if row >= 0]] = True
    return mask


def keep_rows(x: Tensor, rows: Tensor) -> Tensor:
    """``x`` (B, H, L, D) with zeros outside the given rows."""
    mask = active_mask(rows, x.shape[0], x.shape[2])
    return x.masked_fill(~mask[:, None, :, None], 0.0)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """The given rows (B, A) of ``x`` (B, H, L, D) as (B, H, A, D), with zeros at padding."""
    taken = torch.stack([x[b][:, members] for b, members in enumerate(rows.clamp_min(0))])
    return taken.masked_fill((rows < 0)[:, None, :, None], 0.0)


def put_rows(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """A copy of ``x`` (B, H, L, D) with ``values`` (B, H, A, D) at the given rows (B, A)."""
    x = x.clone()
    for b, members in enumerate(rows):
        x[b][:, members[members >= 0]] = values[b][:, members >= 0]
    return x


def visible_keys(
    query_rows: Tensor,
    key_length: int,
    key_padding_mask: Tensor | None,
    window: int | None,
    block_size: int | None = None,
) -> Tensor:
    """Which keys the queries at ``query_rows`` (B, A) see, as bool (B, 1, A, Lk)."""
    batch, count = query_rows.shape
    device = query_rows.device
    visible = torch.ones(batch, 1, count, key_length, dtype=torch.bool, device=device)
    if key_padding_mask is not None:
        visible = visible & key_padding_mask[:, None, None, :]
    if window is not None:
        distance = query_rows[:, :, None] - torch.arange(key_length, device=device)
        visible = visible & (distance.abs() <= window)[:, None]
    if block_size is not None:
        keys = torch.arange(key_length, device=device)
        later = keys // block_size > query_rows[:, :, None] // block_size
        visible = visible & ~later[:, None]
    return visible


def random_key_bias(batch: int, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, Lk): a tenth of the keys are excluded, and every key of the second canvas."""
    generator = torch.Generator().manual_seed(5)
    bias = 2.0 * torch.randn(batch, length, generator=generator, dtype=torch.float64)
    bias[torch.rand(batch, length, generator=generator) < 0.1] = -torch.inf
    bias[1:2] = -torch.inf
    return bias.to(dtype)


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None = None,
    scale: float | None = None,
    key_bias: Tensor | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ + bias) v in the inputs' dtype; zeros where a query sees no key."""
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q * scale) @ k.transpose(-1, -2)
    if key_bias is not None:
        excluded = (key_bias == -torch.inf)[:, None, None]
        scores = scores + key_bias.to(q.dtype)[:, None, None].masked_fill(excluded, 0.0)
        visible = ~excluded if visible is None else visible & ~excluded
    if visible is None:
        return scores.softmax(dim=-1) @ v
    p = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    return p.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0) @ v


def output_and_gradients(
    attention: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """The output and the gradient of each input, which become leaves."""
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    out = attention(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, grad_output)


def assert_as_accurate_as_dense(
    actual: tuple[Tensor, ...],
    inputs: tuple[Tensor, Tensor, Tensor],
    grad_output: Tensor,
    visible: Tensor | None = None,
    scale: float | None = None,
    select: Callable[..., tuple[Tensor, ...]] = lambda *everything: everything,
    key_bias: Tensor | None = None,
) -> None:
    """``actual`` (out, dq, dk, dv) against dense attention in float64 and in its own dtype.

    Args:
        select: what of dense attention's (out, dq, dk, dv) is to be compared.
    """

    def dense(dtype: torch.dtype) -> tuple[Tensor, ...]:
        results = output_and_gradients(
            lambda q, k, v: dense_attention(q, k, v, visible, scale, key_bias),
            tuple(x.to(dtype) for x in inputs),
            grad_output.to(dtype),
        )
        return select(*results)

    q, k, v = (x.double() for x in inputs)
    groups = q.shape[1] // k.shape[1]
    keys, values = (x.abs().repeat_interleave(groups, dim=1).transpose(-1, -2) for x in (k, v))
    scale_size = 1.0 / math.sqrt(q.shape[-1]) if scale is None else abs(scale)
    # Kernels rebuild P as exp(s - lse), which turns the rounding of a score s into an error
    # of |s| roundings in P; dS = P (dP - delta) is a difference of two numbers like dP.
    score = max(1.0, scale_size * largest(q.abs() @ keys))
    if key_bias is not None:
        score += largest(key_bias.double().masked_fill(key_bias == -torch.inf, 0.0))
    score_gradient = score * scale_size * largest(grad_output.double().abs() @ values)
    intermediates = (
        largest(v),
        score_gradient * largest(k),
        score_gradient * largest(q),
        score * largest(grad_output.double()),
    )
    factors = (FORWARD_FACTOR, GRADIENT_FACTOR, GRADIENT_FACTOR, GRADIENT_FACTOR)
    everything = zip(
        ("out", "dq", "dk", "dv"),
        actual,
        dense(torch.float64),
        dense(inputs[0].dtype),
        factors,
        intermediates,
        strict=True,
    )
    for arguments in everything:
        assert_as_accurate(*arguments)


def assert_rows_are_as_accurate_as_dense(
    actual: tuple[Tensor, ...],
    live: tuple[Tensor, Tensor, Tensor],
    frozen: tuple[Tensor, Tensor],
    rows: Tensor,
    grad_output: Tensor,
    key_padding_mask: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    block_size: int | None = None,
    key_bias: Tensor | None = None,
) -> None:
    """``actual`` (out, dq, dk, dv) of the rows (B, A) of a canvas, live there and frozen
    elsewhere, against dense attention over the merged canvas."""
    (q_rows, k_rows, v_rows), (k, v) = live, frozen
    merged = (q_rows, put_rows(k, rows, k_rows), put_rows(v, rows, v_rows))
    members = (rows >= 0)[:, None, :, None]

    def at_rows(out: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor, ...]:
        return out.masked_fill(~members, 0.0), dq, take_rows(dk, rows), take_rows(dv, rows)

    assert_as_accurate_as_dense(
        actual,
        merged,
        grad_output.masked_fill(~members, 0.0),
        visible_keys(rows.clamp_min(0), k.shape[2], key_padding_mask, window, block_size),
        scale,
        select=at_rows,
        key_bias=key_bias,
    )
