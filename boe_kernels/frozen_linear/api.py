"""The public function of the frozen linear layer."""

from __future__ import annotations

from torch import Tensor

from boe_kernels._arguments import (
    require_alike,
    require_constant,
    require_floating,
    require_shape,
    require_tensor,
)
from boe_kernels._dispatch import decide, note_path
from boe_kernels.frozen_linear import op
from boe_kernels.frozen_linear.reference import reference


def frozen_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """x Wᵀ + b with constant W and b: the gradient reaches ``x`` only.

    For the few rows of a replayed forward (:func:`active_row_attention`), whose products
    PyTorch's default does badly on a CPU.

    Args:
        x: (..., K), float64/float32/bfloat16/float16.
        weight: (N, K) of x's dtype. bias: (N,) or ``None``.
        backend: "auto", "library" or "reference". All can be differentiated any number of
            times.

    Returns:
        (..., N) of x's dtype.

    Raises:
        TypeError, ValueError: an argument is not as above, or ``weight`` or ``bias``
            requires a gradient.
    """
    require_tensor("x", x)
    require_floating("x", x)
    if x.dim() == 0:
        raise ValueError("x must have at least 1 dimension, got a scalar")
    require_tensor("weight", weight, rank=2)
    require_alike("weight", weight, "x", x)
    require_shape("weight", weight, (weight.shape[0], x.shape[-1]), "(N, K)")
    if bias is not None:
        require_tensor("bias", bias)
        require_alike("bias", bias, "x", x)
        require_shape("bias", bias, (weight.shape[0],), "(N,)")
    path = decide(op.NAME, backend, x.device, x.dtype).path
    if path == "reference":
        note_path(op.NAME, path)
        return reference(x, weight, bias)
    require_constant(op.NAME, weight=weight, bias=bias)
    return op.forward_op(x, weight, bias, path)
