"""What attention with gradients through the active rows is, in float64.

Heads of keys and sequences of the batch do not touch each other, so two of them, the first
and the last, stand for all: in float64 the whole of a large case would not fit a device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.attention_providers import Inputs
from bench.session import WrongResultError

# Relative error in the Frobenius norm. Observed in plain PyTorch: at most a fourth of it.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}

# Kernels that split float32 products over tensor cores lose a little; those that round the
# operands to tf32, which is 3e-4 off, are not computing in float32.
GPU_TOLERANCE = {**TOLERANCE, torch.float32: 1e-4}


@dataclass(frozen=True)
class _Slice:
    """One key head of one sequence, with its query heads."""

    sequence: int
    head: int
    out: Tensor
    dq_rows: Tensor
    """At the active rows."""
    dk: Tensor
    dv: Tensor


class Truth:
    """The results that every provider is compared with."""

    def __init__(self, x: Inputs) -> None:
        self._x = x
        self._group = x.q.shape[1] // x.k.shape[1]
        corners = {(0, 0), (x.k.shape[0] - 1, x.k.shape[1] - 1)}
        self._slices = [self._compute(*corner) for corner in sorted(corners)]

    def compare(self, name: str, out: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
        """Refuse results that are off.

        Args:
            dq: (B, H, L, D), or (B, H, A, D) from a provider that returns the active rows.

        Raises:
            WrongResultError: a relative error is out of bounds, or dq is not exactly zero
                at an inactive row.
        """
        x = self._x
        compact = dq.shape[2] != x.q.shape[2]
        dq_rows = dq if compact else dq.index_select(2, x.active)
        for part in self._slices:
            heads = slice(part.head * self._group, (part.head + 1) * self._group)
            pairs = {
                "out": (out[part.sequence, heads], part.out),
                "dq": (dq_rows[part.sequence, heads], part.dq_rows),
                "dk": (dk[part.sequence, part.head], part.dk),
                "dv": (dv[part.sequence, part.head], part.dv),
            }
            for what, (mine, right) in pairs.items():
                error = float((mine.detach().double() - right).norm() / right.norm())
                # Written so that NaN is refused too.
                if not error <= self._tolerance():
                    raise WrongResultError(f"{name}: {what} is off by {error:.1e}")
        if not compact and dq.index_select(2, x.inactive).any():
            raise WrongResultError(f"{name}: dq is not zero at inactive rows")

    def _tolerance(self) -> float:
        table = TOLERANCE if self._x.q.device.type == "cpu" else GPU_TOLERANCE
        return table[self._x.q.dtype]

    def _compute(self, sequence: int, head: int) -> _Slice:
        x = self._x
        heads = slice(head * self._group, (head + 1) * self._group)
        q, k, v, dout = (
            part.detach().double()
            for part in (
                x.q[sequence, heads],
                x.k[sequence, head],
                x.v[sequence, head],
                x.dout[sequence, heads],
            )
        )
        scale = 1.0 / math.sqrt(q.shape[-1])
        p = (scale * q @ k.T).softmax(dim=-1)
        out = p @ v
        p, q, dout = (rows.index_select(1, x.active) for rows in (p, q, dout))
        dp = dout @ v.T
        # ds = p (dp − Σ p dp), the derivative of the softmax.
        ds = scale * p * (dp - (p * dp).sum(dim=-1, keepdim=True))
        return _Slice(
            sequence,
            head,
            out,
            dq_rows=ds @ k,
            dk=torch.einsum("hal,had->ld", ds, q),
            dv=torch.einsum("hal,had->ld", p, dout),
        )
