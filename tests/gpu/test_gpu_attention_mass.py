"""The attention mass's kernel on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from dense_attention import random_qkv, visible_keys
from error_bounds import FORWARD_FACTOR, assert_as_accurate, largest
from torch import Tensor

from boe_kernels import attention_mass, observe_paths

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPES = [
    pytest.param((2, (4, 2), 63, 32, 11), id="S=11 L=63"),
    pytest.param((1, (7, 1), 129, 80, 1), id="S=1 d=80"),
    pytest.param((2, (2, 2), 40, 16, 0), id="S=0"),
    pytest.param((1, (28, 4), 1023, 128, 200), id="Dream", marks=pytest.mark.device_only),
    pytest.param((3, (8, 8), 1500, 64, 900), id="many rows", marks=pytest.mark.device_only),
]


def mass(
    q: Tensor, k: Tensor, lse: Tensor, weights: Tensor, visible: Tensor, bias: Tensor
) -> Tensor:
    """Written out, in the dtype of ``q``."""
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias.to(q.dtype)[:, None, None]
    # Rows without a key have no log-sum-exp, and count for nothing.
    counts = (lse > -torch.inf)[..., None] & visible
    p = torch.where(counts, (scores - lse.to(q.dtype)[..., None]).exp(), 0.0)
    return (p * weights.to(q.dtype)[:, None, :, None]).sum(dim=(1, 2))


@pytest.mark.sanitized
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "all masks"])
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mass_is_as_accurate_as_plain_pytorch(shape, biased, masked, dtype, device):
    batch, heads, length, width, count = shape
    q, k, *_ = (x.to(device) for x in random_qkv(batch, heads, length, width=width, dtype=dtype))
    random = torch.Generator().manual_seed(0)
    rows = torch.stack([torch.randperm(length, generator=random)[:count] for _ in range(batch)])
    rows[-1, count // 2 :] = -1
    weights = torch.randn(batch, count, generator=random).to(device)
    padding = window = block_size = None
    if masked:
        padding = (torch.arange(length, device=device) % 7 != 2).expand(batch, -1)
        window, block_size = 20, 8
    rows = rows.to(device)
    visible = visible_keys(rows.clamp_min(0), length, padding, window, block_size)
    visible = visible & (rows >= 0)[:, None, :, None]
    batches = torch.arange(batch, device=device)[:, None]
    q_rows = q.transpose(1, 2)[batches, rows.clamp_min(0)].transpose(1, 2).contiguous()
    keys = k.double().repeat_interleave(heads[0] // heads[1], dim=1).transpose(-1, -2)
    bias = torch.randn(batch, length, generator=random).to(device)
    bias = bias if biased else torch.zeros_like(bias)
    scores = q_rows.double() @ keys / math.sqrt(width) + bias.double()[:, None, None]
    lse = scores.masked_fill(~visible, -torch.inf).logsumexp(dim=-1).float()
    with observe_paths() as seen:
        actual = attention_mass(
            q_rows,
            k,
            lse,
            weights,
            row_idx=rows,
            key_padding_mask=padding,
            key_bias=bias if biased else None,
            window=window,
            block_size=block_size,
            backend="triton",
        )
    assert {path for _, path in seen} == {"triton"}
    truth = mass(q_rows.double(), k.double(), lse.double(), weights.double(), visible, bias)
    plain = mass(q_rows, k, lse, weights, visible, bias).float()
    # exp(s - lse) turns the rounding of a score into an error of |s| roundings.
    size = max(1.0, largest(scores)) * largest(weights) * max(1, count) * heads[0]
    assert_as_accurate("mass", actual, truth, plain, FORWARD_FACTOR, size)
