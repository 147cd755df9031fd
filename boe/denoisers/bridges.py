"""Which observed rows carry influence from candidates to probes (docs/method.md).

A candidate reaches a probe in two hops through a row that attends to the candidate in
one layer and is attended to by the probe in a later one. Both sums come from the forward's
queries, keys and log-sum-exps: no softmax is taken again, and no L×L tensor is held.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boe.denoisers.attention_modes import LayerCall
from boe.denoisers.base import take_rows
from boe_kernels import attention_mass

_ROW_BLOCK = 128


def attention_received(layer: LayerCall, rows: Tensor) -> Tensor:
    """Σ over heads and the given query rows of the probability that each key gets, (B, L)."""
    assert layer.q is not None
    return attention_mass(
        take_rows(layer.q.transpose(1, 2), rows).transpose(1, 2),
        layer.k,
        take_rows(log_sum_exp(layer).transpose(1, 2), rows).transpose(1, 2),
        row_idx=rows,
        key_padding_mask=layer.key_padding_mask,
        scale=layer.scale,
        window=layer.window,
        block_size=layer.block_size,
    )


def attention_paid(layer: LayerCall, keys: Tensor) -> Tensor:
    """Σ over heads of the probability that each row gives to the keys (B, C), (B, L)."""
    assert layer.q is not None
    k = take_rows(layer.k.transpose(1, 2), keys).transpose(1, 2)
    lse, paid = log_sum_exp(layer), []
    for block in _row_blocks(layer.q):
        rows = torch.arange(block.start, block.stop, device=keys.device)
        scores = _scores(layer.q[:, :, block], k, layer.scale) - lse[:, :, block, None]
        p = scores.exp().masked_fill(~_visible(layer, rows, keys), 0.0)
        paid.append(p.sum(dim=(1, 3)))
    return torch.cat(paid, dim=1)


def log_sum_exp(layer: LayerCall) -> Tensor:
    """ln Σ exp(scale · q·k) over the keys that each row sees, (B, Hq, L): the forward's own
    where it was recorded, computed a block of rows at a time otherwise."""
    if layer.lse is not None:
        return layer.lse
    assert layer.q is not None
    keys = torch.arange(layer.k.shape[2], device=layer.k.device).expand(layer.k.shape[0], -1)
    found = []
    for block in _row_blocks(layer.q):
        rows = torch.arange(block.start, block.stop, device=keys.device)
        scores = _scores(layer.q[:, :, block], layer.k, layer.scale)
        hidden = ~_visible(layer, rows, keys)
        found.append(scores.masked_fill(hidden, -torch.inf).logsumexp(dim=-1))
    return torch.cat(found, dim=2)


def _row_blocks(q: Tensor) -> list[slice]:
    length = q.shape[2]
    return [slice(k, min(k + _ROW_BLOCK, length)) for k in range(0, length, _ROW_BLOCK)]


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """scale · q kᵀ (B, Hq, R, C), in float32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    k = k.to(wide).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return q.to(wide) @ k.transpose(-2, -1) * scale


def _visible(layer: LayerCall, rows: Tensor, keys: Tensor) -> Tensor:
    """bool (B, 1, R, C): whether row i (R,) sees key j of (B, C), padded with −1."""
    i, j = rows[None, :, None], keys[:, None, :]
    seen = (j >= 0).expand(-1, rows.shape[0], -1)
    if layer.key_padding_mask is not None:
        seen = seen & layer.key_padding_mask.gather(1, keys.clamp_min(0)).unsqueeze(1)
    if layer.window is not None:
        seen = seen & ((i - j).abs() <= layer.window)
    if layer.block_size is not None:
        seen = seen & (j // layer.block_size <= i // layer.block_size)
    return seen.unsqueeze(1)
