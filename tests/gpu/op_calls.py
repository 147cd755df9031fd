"""One call of every op: its inputs at a given size, and its results with their gradients.

For the properties that every op has to have: the same bits on every run, CUDA graphs, no
waiting for the device, no compilation for a new size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from boe_kernels import (
    active_query_attention,
    active_query_backward,
    active_query_forward,
    active_row_attention,
    attention_mass,
    entropy_stats,
    inject_soft_embeddings,
    linear_entropy,
    sample_tokens,
    tis_scores,
)

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Size:
    """How large the inputs are. What a kernel is compiled for does not depend on it."""

    batch: int
    length: int
    active: int
    vocabulary: int
    ragged: bool = True


SMALL = Size(batch=2, length=40, active=7, vocabulary=131)
OTHER = Size(batch=3, length=57, active=12, vocabulary=197)


@dataclass(frozen=True)
class OpCall:
    """An op, called.

    Attributes:
        draw: the inputs, floating ones of the given dtype.
        run: from the inputs to outputs and gradients.
        invariant: a sequence's results are the same alone as in a batch, to the bit. Not
            where the vendor's matrix products take part.
        mixed: rows of several sequences share a tile of a matrix product. The interpreter's
            products are NumPy's, for which it matters where in the tile a row stands.
    """

    draw: Callable[[Size, torch.dtype, torch.device, int], Tensors]
    run: Callable[..., Tensors]
    invariant: bool = True
    mixed: bool = False


class _Draw:
    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self._dtype, self._device = dtype, device
        self._random = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.randn(shape, generator=self._random, device=self._device)
        return drawn.to(dtype or self._dtype)

    def rows(self, size: Size, length: int | None = None) -> Tensor:
        """(B, A) row sets, of which later ones have fewer members if they are ragged."""
        length = length or size.length
        keys = torch.rand(size.batch, length, generator=self._random, device=self._device)
        rows = keys.argsort(dim=-1)[:, : size.active]
        if not size.ragged:
            return rows
        places = torch.arange(size.active, device=self._device)
        fewer = torch.arange(size.batch, device=self._device) % (size.active // 2 + 1)
        return torch.where(places < size.active - fewer[:, None], rows, -1)


def _with_gradients(run: Callable[..., Tensor], leaves: Tensors, upstream: Tensor) -> Tensors:
    # detach() rather than clone(): a graph that is replayed must read the tensors given.
    leaves = tuple(x.detach().requires_grad_() for x in leaves)
    out = run(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)


# --- attention ----------------------------------------------------------------------

HEADS, KEY_HEADS, WIDTH = 4, 2, 32


def _draw_query(size: Size, dtype: torch.dtype, device: torch.device, seed: int) -> Tensors:
    draw = _Draw(dtype, device, seed)
    heads = (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
    tensors = (draw.normal(size.batch, h, size.length, WIDTH) for h in heads)
    return *tensors, draw.rows(size)


def _query(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, rows: Tensor) -> Tensors:
    return _with_gradients(
        lambda q, k, v: active_query_attention(q, k, v, rows, backend="triton"), (q, k, v), dout
    )


def _query_by_hand(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, rows: Tensor) -> Tensors:
    out, lse = active_query_forward(q, k, v, window=19, backend="triton")
    gradients = active_query_backward(
        dout, q, k, v, out, lse, rows, window=19, compact_dq=True, backend="triton"
    )
    return out, lse, *gradients


def _query_of_keys(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, rows: Tensor) -> Tensors:
    return _with_gradients(
        lambda q, k, v: active_query_attention(
            q, k, v, rows, grad_rows="keys", block_size=16, backend="triton"
        ),
        (q, k, v),
        dout,
    )


def _draw_rows(size: Size, dtype: torch.dtype, device: torch.device, seed: int) -> Tensors:
    draw = _Draw(dtype, device, seed)
    live = [draw.normal(size.batch, h, size.active, WIDTH) for h in (HEADS, KEY_HEADS, KEY_HEADS)]
    frozen = [draw.normal(size.batch, KEY_HEADS, size.length, WIDTH) for _ in range(2)]
    return *live, *frozen, draw.normal(size.batch, HEADS, size.active, WIDTH), draw.rows(size)


def _rows(
    q: Tensor, k_rows: Tensor, v_rows: Tensor, k: Tensor, v: Tensor, dout: Tensor, rows: Tensor
) -> Tensors:
    return _with_gradients(
        lambda *live: active_row_attention(*live, k, v, rows, backend="triton"),
        (q, k_rows, v_rows),
        dout,
    )


def _draw_mass(size: Size, dtype: torch.dtype, device: torch.device, seed: int) -> Tensors:
    draw = _Draw(dtype, device, seed)
    q_rows = draw.normal(size.batch, HEADS, size.active, WIDTH)
    k = draw.normal(size.batch, KEY_HEADS, size.length, WIDTH)
    lse = 5 + draw.normal(size.batch, HEADS, size.active, dtype=torch.float32)
    weights = draw.normal(size.batch, size.active, dtype=torch.float32)
    return q_rows, k, lse, weights, draw.rows(size)


def _mass(q_rows: Tensor, k: Tensor, lse: Tensor, weights: Tensor, rows: Tensor) -> Tensors:
    return (attention_mass(q_rows, k, lse, weights, row_idx=rows, backend="triton"),)


# --- vocabulary ---------------------------------------------------------------------


def _draw_logits(size: Size, dtype: torch.dtype, device: torch.device, seed: int) -> Tensors:
    draw = _Draw(dtype, device, seed)
    logits = 3 * draw.normal(size.batch, size.active, size.vocabulary)
    upstream = draw.normal(size.batch, size.active, dtype=torch.float32)
    return logits, upstream, torch.zeros(1, dtype=torch.int64, device=device)


def _entropy(logits: Tensor, upstream: Tensor, ids: Tensor) -> Tensors:
    leaf = logits.detach().requires_grad_()
    stats = entropy_stats(leaf, suppressed_ids=ids, backend="triton")
    (gradient,) = torch.autograd.grad(stats.entropy, leaf, upstream)
    return gradient, *(x.detach() for x in stats)


def _draw_head(size: Size, dtype: torch.dtype, device: torch.device, seed: int) -> Tensors:
    draw = _Draw(dtype, device, seed)
    hidden, weight = draw.normal(size.batch * size.active, 32), draw.normal(size.vocabulary, 32)
    return hidden, weight, draw.normal(size.batch * size.active, dtype=torch.float32)


def _head(hidden: Tensor, weight: Tensor, upstream: Tensor) -> Tensors:
    leaf = hidden.detach().requires_grad_()
    stats = linear_entropy(leaf, weight, backend="triton")
    (gradient,) = torch.autograd.grad(stats.entropy, leaf, upstream)
    return gradient, *(x.detach() for x in stats)


def _draw_seeded(size: Size, dtype: torch.dtype, device: torch.device, seed: int) -> Tensors:
    logits, *_ = _draw_logits(size, dtype, device, seed)
    count = size.batch * size.active
    seeds = torch.arange(seed * count, (seed + 1) * count, device=device)
    return logits, seeds.view(size.batch, size.active)


def _tokens(logits: Tensor, seeds: Tensor) -> Tensors:
    sample = sample_tokens(logits, seeds, backend="triton")
    return sample.token, *sample.stats


# --- steering -----------------------------------------------------------------------


def _draw_write(size: Size, dtype: torch.dtype, device: torch.device, seed: int) -> Tensors:
    draw = _Draw(dtype, device, seed)
    return (
        draw.normal(size.batch, size.length, 48),
        draw.rows(size),
        3 * draw.normal(size.batch, size.active, size.vocabulary),
        draw.normal(size.vocabulary, 48),
        draw.normal(48),
    )


def _write(top_k: int | None, path: str = "triton") -> Callable[..., Tensors]:
    def write(*inputs: Tensor) -> Tensors:
        return inject_soft_embeddings(
            *inputs, 0.5, top_k, is_logits=True, return_delta=True, backend=path
        )

    return write


def _draw_scores(size: Size, dtype: torch.dtype, device: torch.device, seed: int) -> Tensors:
    draw = _Draw(dtype, device, seed)
    gradient, delta = (draw.normal(size.batch, size.active, 48) for _ in range(2))
    entropy = draw.normal(size.batch, size.length, dtype=torch.float32).abs()
    remaining = torch.full((size.batch,), 0.5, device=device)
    return gradient, delta, entropy, draw.rows(size), remaining


def _scores(*inputs: Tensor) -> Tensors:
    return tuple(
        tis_scores(
            *inputs,
            vocabulary=100,
            gate="positive",
            penalty=0.5,
            floor=1.0,
            normalise="zscore",
            backend="triton",
        )
    )


OP_CALLS = {
    "active_query_attention": OpCall(_draw_query, _query),
    "active_query by hand": OpCall(_draw_query, _query_by_hand),
    "active_query_attention of keys": OpCall(_draw_query, _query_of_keys),
    "active_row_attention": OpCall(_draw_rows, _rows),
    "attention_mass": OpCall(_draw_mass, _mass),
    "entropy_stats": OpCall(_draw_logits, _entropy),
    "linear_entropy": OpCall(_draw_head, _head, invariant=False),
    "sample_tokens": OpCall(_draw_seeded, _tokens),
    "inject_soft_embeddings": OpCall(_draw_write, _write(None), invariant=False),
    "inject_soft_embeddings, fused": OpCall(_draw_write, _write(None, "triton_fused"), mixed=True),
    "inject_soft_embeddings, top k": OpCall(_draw_write, _write(5)),
    "tis_scores": OpCall(_draw_scores, _scores),
}
