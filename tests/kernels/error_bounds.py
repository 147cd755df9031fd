"""How far a result may lie from the truth.

The truth is computed in float64 from the same (already rounded) inputs. The yardstick is
what plain PyTorch, written without any cleverness in the inputs' own precision, gets wrong
on the same inputs: our error may be a small multiple of that. A floor derived from the data
covers the cases in which plain PyTorch happens to be exact: two roundings of the largest
result in its own precision, and two of the largest intermediate in the precision that sums
are kept in. All errors are maxima over the elements.
"""

from __future__ import annotations

import torch
from torch import Tensor

FORWARD_FACTOR = 2.0
GRADIENT_FACTOR = 3.0
ROUNDINGS = 2.0


def largest(x: Tensor) -> float:
    """max |x|; 0 where there is nothing, NaN where anything is."""
    return x.abs().max().item() if x.numel() else 0.0


def rounding_floor(truth: Tensor, dtype: torch.dtype, intermediate: float) -> float:
    """What rounding alone may cost in ``dtype`` when sums are kept in at least float32."""
    accumulation = torch.promote_types(dtype, torch.float32)
    of_results = torch.finfo(dtype).eps * largest(truth)
    of_intermediates = torch.finfo(accumulation).eps * intermediate
    return ROUNDINGS * (of_results + of_intermediates)


def assert_as_accurate(
    name: str,
    actual: Tensor,
    truth: Tensor,
    plain: Tensor,
    factor: float,
    intermediate: float | None = None,
) -> None:
    """``actual`` errs at most ``factor`` times as much as ``plain``, up to rounding.

    Args:
        truth: float64.
        plain: the same quantity by plain PyTorch in the inputs' precision.
        intermediate: the size of the largest intermediate of the computation; by default
            that of the result.
    """
    assert actual.shape == truth.shape, f"{name}: shape {actual.shape}, not {truth.shape}"
    assert actual.dtype == plain.dtype, f"{name}: dtype {actual.dtype}, not {plain.dtype}"
    assert truth.isfinite().all(), f"{name}: the case is ill-posed, its truth is not finite"
    if intermediate is None:
        intermediate = largest(truth)
    error = largest(actual.double() - truth)
    plain_error = largest(plain.double() - truth)
    floor = rounding_floor(truth, actual.dtype, intermediate)
    assert error <= factor * plain_error + floor, (
        f"{name}: error {error:.3g} exceeds {factor} x {plain_error:.3g} (plain PyTorch's) "
        f"+ {floor:.3g} (rounding)"
    )
