"""What an op allocates while it runs: every tensor that any operator below it returns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AllocationRecorder(TorchDispatchMode):
    """Records the operators that run inside the ``with`` block and what they return.

    Our own operators are opened, so that the PyTorch operators in them are recorded too.
    Views of ``known`` tensors are no allocations and are left out.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._known = {x.untyped_storage().data_ptr() for x in known}
        self._kept: list[Tensor] = []
        self.returned: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "boe_kernels":
            implementation = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
            with self:
                result = func.redispatch(implementation, *args, **kwargs)
        else:
            result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._record(func, leaf)
        return result

    def _record(self, func: Any, leaf: Tensor) -> None:
        # Kept alive, so that no later tensor can take the address of a known one's view.
        self._kept.append(leaf)
        if leaf.untyped_storage().data_ptr() not in self._known:
            self.returned.append((str(func), tuple(leaf.shape)))

    def largest(self) -> tuple[int, str]:
        """The most elements in any recorded tensor, and where it came from."""
        return max(
            (torch.Size(shape).numel(), f"{func} returned {shape}") for func, shape in self.returned
        )
