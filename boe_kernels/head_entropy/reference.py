"""The definition of the statistics of a linear head."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from boe_kernels._autocast import in_given_dtypes
from boe_kernels.entropy.reference import accumulation_dtype
from boe_kernels.entropy.reference import reference as stats_of_logits


@in_given_dtypes
def reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, suppressed_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Statistics of z = W h + b, with the product in float32 (float64 for float64)."""
    dtype = accumulation_dtype(hidden.dtype)
    bias = None if bias is None else bias.to(dtype)
    return stats_of_logits(linear(hidden.to(dtype), weight.to(dtype), bias), suppressed_ids)
