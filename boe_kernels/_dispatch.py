"""Which implementation of an op runs, and why.

Every op has up to five paths that compute the same thing:

- ``triton_fused``: our GPU kernel, with a matrix product inside that ``triton`` leaves to the
  vendor's library; "auto" takes it only where a measurement has shown that it is faster;
- ``triton``: our GPU kernel;
- ``native``: our CPU kernel, compiled from ``csrc/``;
- ``library``: the best composition of PyTorch's own kernels;
- ``reference``: plain PyTorch, any dtype and device, differentiable any number of times.

``backend="auto"`` takes the first usable one in this order. Naming a path that cannot run
raises; nothing else is ever computed in its place. The implementation of a path is the
module of that name in the op's folder, imported when the path first runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from boe_kernels._triton import why_not_heads

PATHS = ("triton_fused", "triton", "native", "library", "reference")
BACKENDS = ("auto", *PATHS)
_OF_TRITON = ("triton_fused", "triton")

WhyNot = Callable[[torch.device, torch.dtype], str | None]
"""Tells why a path cannot run for a device and dtype; ``None`` when it can."""

WhyPassedOver = Callable[[torch.device, torch.dtype, tuple[int, int] | None], str | None]
"""The same of why "auto" does not take it, which may depend on :func:`decide`'s ``table``."""


@dataclass(frozen=True)
class Decision:
    """The path that an op takes, and why the preferred ones were passed over."""

    op: str
    path: str
    rejected: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        reasons = "; ".join(f"not {path}: {why}" for path, why in self.rejected.items())
        return f"{self.op}: {self.path}" + (f" ({reasons})" if reasons else "")


def always(device: torch.device, dtype: torch.dtype) -> str | None:
    """The availability of a path that runs on every device."""
    return None


_REGISTRY: dict[str, dict[str, WhyNot]] = {}
_PASSED_OVER: dict[str, dict[str, WhyPassedOver]] = {}
_OBSERVERS: ContextVar[tuple[list[tuple[str, str]], ...]] = ContextVar("observers", default=())


def register_paths(
    op: str, *, passed_over: Mapping[str, WhyPassedOver] | None = None, **paths: WhyNot
) -> None:
    """Declare the paths of ``op`` besides the reference, which every op has.

    Args:
        passed_over: by path, why "auto" does not take it where it could run.
        paths: by path, why it cannot run.
    """
    passed_over = dict(passed_over or {})
    unknown = (set(paths) | set(passed_over)) - set(PATHS)
    if unknown:
        raise ValueError(f"unknown paths for {op}: {sorted(unknown)}")
    _REGISTRY[op] = {**paths, "reference": always}
    _PASSED_OVER[op] = passed_over


def registered_ops() -> tuple[str, ...]:
    """The names of the ops that :func:`decide` knows."""
    return tuple(_REGISTRY)


def decide(
    op: str,
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    width: int | None = None,
    table: tuple[int, int] | None = None,
) -> Decision:
    """The path that ``op`` takes for tensors of ``dtype`` on ``device``.

    Args:
        width: the heads' dimension, for attention ops.
        table: (V, D) of the embedding table, for the soft write; without it as for sizes that
            16 divides.

    Raises:
        ValueError: ``backend`` is unknown, or names a path that cannot run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if op not in _REGISTRY:
        raise ValueError(f"op must be one of {', '.join(registered_ops())}, got {op!r}")
    paths = _REGISTRY[op]
    rejected: dict[str, str] = {}
    for path in PATHS if backend == "auto" else (backend,):
        if path not in paths:
            # Few ops have a product to fuse: the others need not say so each time.
            if backend != "auto" or path != "triton_fused":
                rejected[path] = "not implemented for this op"
            continue
        if backend == "auto" and path in _OF_TRITON and device.type == "cpu":
            # By name it may run on the CPU, under Triton's interpreter: for tests only.
            rejected[path] = "needs a GPU"
            continue
        reason = paths[path](device, dtype)
        if reason is None and path in _OF_TRITON and width is not None:
            reason = why_not_heads(width)
        if reason is None and backend == "auto" and path in _PASSED_OVER[op]:
            reason = _PASSED_OVER[op][path](device, dtype, table)
        if reason is None:
            return Decision(op, path, rejected)
        rejected[path] = reason
    raise ValueError(f"backend={backend!r} cannot run {op}: {rejected[backend]}")


@cache
def implementation(package: str, path: str) -> ModuleType:
    """The module that implements ``path`` in an op's package."""
    return import_module(f"{package}.{path}")


def note_path(op: str, path: str) -> None:
    """Tell the active observers that ``path`` of ``op`` is running.

    Not from inside a compiled graph, into which a reference is traced; the other paths run
    behind registered ops, which are not.
    """
    if torch.compiler.is_compiling():
        return
    for record in _OBSERVERS.get():
        record.append((op, path))


@contextmanager
def observe_paths() -> Iterator[list[tuple[str, str]]]:
    """Collect ``(op, path)`` for every op call made inside the ``with`` block."""
    record: list[tuple[str, str]] = []
    token = _OBSERVERS.set((*_OBSERVERS.get(), record))
    try:
        yield record
    finally:
        _OBSERVERS.reset(token)
