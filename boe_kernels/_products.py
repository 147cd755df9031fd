"""Products with a constant matrix."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, (..., N), from x (..., K), W (N, K) and b (N,) or ``None``.

    In float32 on the CPU by oneDNN, which PyTorch itself uses there only for lower
    precision: with few rows, and on processors that are not Intel's, its product takes
    half the time of MKL's (docs/ops.md). The precision is the same.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() and _has_onednn():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
