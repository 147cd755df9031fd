"""Keeping ``torch.autocast`` out of the ops."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def in_given_dtypes(function: Function) -> Function:
    """``function`` as it is without autocast; its first argument is a tensor.

    Under autocast the products inside an op would be taken in another dtype than that of its
    arguments, in those paths that take them from PyTorch and in no others.
    """

    @wraps(function)
    def wrapped(first: torch.Tensor, *args: Any) -> Any:
        device = first.device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return function(first, *args)
        with torch.autocast(device, enabled=False):
            return function(first, *args)

    return wrapped  # type: ignore[return-value]
