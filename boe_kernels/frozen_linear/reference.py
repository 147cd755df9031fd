"""The definition of the frozen linear layer."""

from __future__ import annotations

from torch import Tensor

from boe_kernels._autocast import in_given_dtypes


@in_given_dtypes
def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, in which W and b are constants."""
    product = x @ weight.detach().t()
    return product if bias is None else product + bias.detach()
