"""Running code at sizes that no memory here would hold, and counting what it would hold.

Inside :class:`PhantomMemory` a tensor of more than some bytes is a *phantom*: PyTorch's fake
tensor, with a shape, and with a storage that has a size and no memory. Smaller ones are real,
so that code whose course depends on data (which positions are masked, which rows are active)
takes its course. What is small and computed from phantoms is made up, since nobody knows it:
numbers between 0 and 1, whole numbers 0, truths ``False``.

Every storage is counted from its making to its freeing, as an allocator would: what autograd
saves stays, a view costs nothing. Our operators run their own code, so that what they allocate
inside counts; their Triton kernels are recorded, not run. What PyTorch's own kernels allocate
inside themselves is not seen (the workspace of a matrix product), nor what an allocator rounds
up or cannot use.
"""

from __future__ import annotations

import pkgutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import boe_kernels
from boe_kernels._dispatch import _REGISTRY
from boe_kernels._library import NAMESPACE, _DifferentiableOp
from boe_kernels._triton import Launch, recording

LARGEST_REAL = 1 << 20
_ATEN = torch.ops.aten
_KNOWN_BY_DATA = (DataDependentOutputException, DynamicOutputShapeException)


class PhantomMemory(TorchDispatchMode):
    """Tensors of more than ``largest_real`` bytes have no memory; all are counted.

    Args:
        architecture: our operators allocate what their Triton kernels want on this one;
            ``None``: what their compositions of PyTorch's own kernels take.

    Attributes:
        held: bytes that are held now, by the stage that made them; ``held_at_peak``: when
            their sum was largest.
    """

    def __init__(
        self, largest_real: int = LARGEST_REAL, architecture: str | None = "sm_90"
    ) -> None:
        super().__init__()
        self.largest_real = largest_real
        self.architecture = architecture
        self.held: Counter[str] = Counter()
        self.held_at_peak: Counter[str] = Counter()
        self._total = self.peak = 0
        self._stage = "other"
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._generator = torch.Generator().manual_seed(0)
        self._launches: list[Launch] = []
        self._around = ExitStack()

    def __enter__(self) -> Self:
        if self.architecture is not None:
            self._launches = self._around.enter_context(recording(self.architecture))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._around.close()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is made inside the ``with`` block is counted under ``name``."""
        before, self._stage = self._stage, name
        try:
            yield
        finally:
            self._stage = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == NAMESPACE:
            return self._run_ours(func, args)
        result = self._run(func, args, kwargs or {})
        for tensor in _tensors(result):
            self._count(tensor)
        return result

    def _run_ours(self, func: Any, args: tuple[Any, ...]) -> Any:
        """An operator by its own code, on the path that is to be counted."""
        if func._schema.arguments[-1].name == "path":
            args = (*args[:-1], self._path(func._schema.name.partition("::")[2]))
        with self:
            result = _own_code()[func](*args)
        # Or what has been launched would keep its arguments.
        self._launches.clear()
        return result

    def _path(self, name: str) -> str:
        op = max((op for op in _REGISTRY if name.startswith(op)), key=len)
        return "triton" if self.architecture and "triton" in _REGISTRY[op] else "library"

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = _tensors((args, kwargs))
        phantoms = any(isinstance(tensor, FakeTensor) for tensor in given)
        if phantoms and func is _ATEN._local_scalar_dense.default:
            return self._made_up(torch.empty((), dtype=given[0].dtype)).item()
        try:
            with self._fake:
                outcome = func(*args, **kwargs)
        except _KNOWN_BY_DATA:
            if phantoms:
                raise
            return func(*args, **kwargs)
        large = any(self._is_large(tensor) for tensor in _tensors(outcome))
        if phantoms and func._schema.is_mutable:
            written = _written(func, args, kwargs)
            return written[0] if len(written) == 1 else tuple(written)
        if large:
            return outcome
        if not phantoms and not func.__name__.startswith(("empty", "new_empty")):
            return func(*args, **kwargs)
        return tree_map_only(Tensor, self._made_up, outcome)

    def _is_large(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().nbytes() > self.largest_real

    def _made_up(self, like: Tensor) -> Tensor:
        """A real tensor of the same shape, strides and dtype."""
        real = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
        if like.dtype.is_floating_point:
            return real.uniform_(generator=self._generator)
        return real.zero_()

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size, stage = storage._cdata, storage.nbytes(), self._stage
        if key in self._storages:
            return

        def forget(_: object) -> None:
            del self._storages[key]
            self.held[stage] -= size
            self._total -= size

        self._storages[key] = weakref.ref(storage, forget)
        self.held[stage] += size
        self._total += size
        if self._total > self.peak:
            self.peak, self.held_at_peak = self._total, Counter(self.held)


@cache
def _own_code() -> dict[Any, Callable[..., Any]]:
    """What runs each registered operator."""
    packages = [info.name for info in pkgutil.iter_modules(boe_kernels.__path__) if info.ispkg]
    modules = [import_module(f"boe_kernels.{name}.op") for name in packages]
    members = [member for module in modules for member in vars(module).values()]
    return {m.op: m._implementation for m in members if isinstance(m, _DifferentiableOp)}


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that ``func`` writes to, in the order of its schema."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(kwargs[argument.name] if argument.kwarg_only else args[place])
    return found
