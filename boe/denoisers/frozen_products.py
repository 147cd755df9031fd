"""A replay's linear layers by ``boe_kernels.frozen_linear``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from boe_kernels import frozen_linear

# From about so many multiplications in a product of all rows with a square matrix on, what a
# product gains is more than what the calls around it cost: measured on a CPU, from 8 rows of
# width 512 to 512 rows of width 64.
_WORTHWHILE = 1 << 21


def frozen_products_for(embeds: Tensor) -> AbstractContextManager[object]:
    """:class:`FrozenProducts` for a replay of ``embeds`` (B, A, D), unless it is too small.

    Few rows of a narrow model are bound by calls, of which PyTorch's own product makes fewest.
    """
    return FrozenProducts() if embeds.numel() * embeds.shape[-1] >= _WORTHWHILE else nullcontext()


class FrozenProducts(TorchFunctionMode):
    """Runs linear layers with constant weights through ``frozen_linear``.

    Inside the ``with`` block only, and without touching the model: a replay has few rows,
    for which PyTorch's own product is slow on a CPU.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear and _is_frozen(*args, **kwargs):
            return frozen_linear(*args, **kwargs)
        return func(*args, **kwargs)


def _is_frozen(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether ``frozen_linear`` computes what ``functional.linear`` would."""
    constant = not weight.requires_grad and (bias is None or not bias.requires_grad)
    plain = input.is_floating_point() and input.dtype == weight.dtype
    return constant and plain and not torch.is_autocast_enabled(input.device.type)
