"""Ways to run attention over all queries with gradients through the active ones.

All but ``dense`` and ``math`` compute the same: every output row, and the gradient that
the active rows send. ``dense`` sends the gradient of all rows, which is what a model
does without our kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from boe_kernels import active_query_attention


@dataclass(frozen=True)
class Inputs:
    """Tensors of one case; q, k and v require gradients."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    """The gradient of the output, at all rows."""
    active: Tensor
    inactive: Tensor
    """The other rows, computed in advance: a gift to ``partition``."""

    @property
    def masked_dout(self) -> Tensor:
        """``dout`` with zeros at the inactive rows: what dense attention has to be given."""
        return self.dout.index_fill(2, self.inactive, 0.0)

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v


Provider = Callable[[Inputs], Tensor]


def dense(x: Inputs) -> Tensor:
    """PyTorch's attention, its backward through all rows."""
    return _attention(x.q, x)


def two_call(x: Inputs) -> Tensor:
    """The public two-call split: all rows as constants, then the active rows again."""
    with torch.no_grad():
        out = _attention(x.q, x)
    # In place, as a careful user would: `out` is fresh and a constant.
    return out.index_copy_(2, x.active, _attention(x.q.index_select(2, x.active), x))


def partition(x: Inputs) -> Tensor:
    """Inactive rows as constants, active rows with gradients: no row is computed twice."""
    with torch.no_grad():
        out = torch.empty_like(x.q)
        if x.inactive.numel():
            rows = _attention(x.q.index_select(2, x.inactive), x)
            out.index_copy_(2, x.inactive, rows)
    return out.index_copy_(2, x.active, _attention(x.q.index_select(2, x.active), x))


def ours(x: Inputs) -> Tensor:
    """``boe_kernels.active_query_attention``."""
    return active_query_attention(x.q, x.k, x.v, x.active)


def library(x: Inputs) -> Tensor:
    """The same without a kernel of ours."""
    return active_query_attention(x.q, x.k, x.v, x.active, backend="library")


def math(x: Inputs) -> Tensor:
    """Dense attention that holds the L×L matrix: what independence of L² is against."""
    with sdpa_kernel(SDPBackend.MATH):
        return _attention(x.q, x)


TIMED: dict[str, Provider] = {
    "dense": dense,
    "two_call": two_call,
    "partition": partition,
    "ours": ours,
    "library": library,
}


def _attention(q: Tensor, x: Inputs) -> Tensor:
    grouped = x.q.shape[1] != x.k.shape[1]
    return scaled_dot_product_attention(q, x.k, x.v, enable_gqa=grouped)
