"""Which observed rows carry influence from candidates to probes (docs/method.md).

A candidate reaches a probe in two hops through a row that attends to the candidate in
one layer and is attended to by the probe in a later one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boe.denoisers.attention_modes import LayerCall
from boe.denoisers.base import take_rows

_ROW_BLOCK = 128


def attention_received(layer: LayerCall, rows: Tensor) -> Tensor:
    """Σ over heads and the given query rows of the probability that each key gets, (B, L)."""
    assert layer.q is not None
    q = take_rows(layer.q.transpose(1, 2), rows).transpose(1, 2)
    weight = (rows >= 0).to(torch.float32)[:, None, :, None]
    return (_probabilities(q, layer, rows) * weight).sum(dim=(1, 2))


def attention_paid(layer: LayerCall, keys: Tensor) -> Tensor:
    """Σ over heads of the probability that each row gives to the keys (B, C), (B, L)."""
    assert layer.q is not None
    batch, _, length, _ = layer.q.shape
    index = keys.clamp_min(0)[:, None, None, :]
    weight = (keys >= 0).to(torch.float32)[:, None, None, :]
    blocks = []
    for start in range(0, length, _ROW_BLOCK):
        stop = min(start + _ROW_BLOCK, length)
        rows = torch.arange(start, stop, device=keys.device).expand(batch, -1)
        p = _probabilities(layer.q[:, :, start:stop], layer, rows)
        paid = p.gather(3, index.expand(*p.shape[:3], -1)) * weight
        blocks.append(paid.sum(dim=(1, 3)))
    return torch.cat(blocks, dim=1)


def _probabilities(q: Tensor, layer: LayerCall, rows: Tensor) -> Tensor:
    """Attention probabilities (B, Hq, R, L) of the given query rows, float32."""
    k = layer.k.float().repeat_interleave(q.shape[1] // layer.k.shape[1], dim=1)
    scores = q.float() @ k.transpose(-2, -1) * layer.scale
    if layer.key_padding_mask is not None:
        scores = scores.masked_fill(~layer.key_padding_mask[:, None, None, :], -torch.inf)
    if layer.window is not None:
        keys = torch.arange(k.shape[2], device=q.device)
        near = (rows.clamp_min(0).unsqueeze(-1) - keys).abs() <= layer.window
        scores = scores.masked_fill(~near.unsqueeze(1), -torch.inf)
    return scores.softmax(dim=-1).nan_to_num(0.0)
