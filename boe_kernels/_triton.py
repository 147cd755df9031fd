"""When the Triton kernels can run, how they are launched, and what decides their binaries.

Importing this module loads no Triton; the modules that hold kernels do. Every kernel is
launched through :func:`launch`, so that a launcher can also be run without a GPU: on meta
tensors, inside :func:`recording`, it tells which binaries it would need. That is how all of
them are compiled ahead of time, from the very code that launches them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

import torch

_LOG = logging.getLogger(__name__)
_LEAST_CAPABILITY = (8, 0)
_INSTALLED = find_spec("triton") is not None

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
"""Those with committed launch parameters; every kernel compiles for each of them."""

Entry = TypeVar("Entry")


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a Triton kernel cannot run for tensors of ``dtype`` on ``device``."""
    if not _INSTALLED:
        return "Triton is not installed"
    if dtype == torch.float64:
        return "the kernels take float32, bfloat16 and float16"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if torch.version.hip is None and capability < _LEAST_CAPABILITY:
            return f"needs compute capability 8.0, got {capability[0]}.{capability[1]}"
        return None
    if device.type != "cpu" or not interpreting():
        return f"needs a GPU, got {device.type}"
    if dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly"
    return None


def widest_head(dtype: torch.dtype) -> int:
    """The largest head dimension of the attention kernels.

    In float32 the tiles of wider heads do not fit the registers, whatever their size.
    """
    return 256 if dtype.itemsize == 2 else 128


def why_not_heads(dtype: torch.dtype, width: int) -> str | None:
    """Why the attention kernels cannot run for heads of ``width``."""
    widest = widest_head(dtype)
    if width <= widest:
        return None
    name = str(dtype).removeprefix("torch.")
    return f"the kernels take {name} heads of at most {widest} dimensions, got {width}"


# --- launching ----------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """One kernel launch: what would run, with which arguments and options."""

    kernel: Any
    """The ``triton.jit`` function."""
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: Mapping[str, Any]
    """constexprs and compiler options by name."""


@dataclass(frozen=True)
class _Recording:
    architecture: str
    launches: list[Launch]


_RECORDING: ContextVar[_Recording | None] = ContextVar("recording", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run ``kernel`` on the device of its first argument, which is a tensor.

    A grid without programs launches nothing.
    """
    if 0 in grid:
        return
    recorded = _RECORDING.get()
    if recorded is not None:
        recorded.launches.append(Launch(kernel, grid, args, options))
        return
    device = args[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*args, **options)
    else:
        kernel[grid](*args, **options)


@contextmanager
def recording(architecture: str) -> Iterator[list[Launch]]:
    """Collect the launches made inside the ``with`` block, as on ``architecture``.

    Nothing runs, so meta tensors will do; outputs are left as they were allocated.
    """
    launches: list[Launch] = []
    token = _RECORDING.set(_Recording(architecture, launches))
    try:
        yield launches
    finally:
        _RECORDING.reset(token)


@dataclass(frozen=True)
class AotCase:
    """A call of a launcher on meta tensors, whose kernels are to be compiled ahead of time.

    The ``triton`` module of an op lists its cases in ``aot_cases()``: together they launch
    each kernel in every committed configuration.
    """

    name: str
    """What tells the case from the others of its op, e.g. "forward, bfloat16"."""
    call: Callable[[], object]
    sample: bool = True
    """Whether ``make test`` compiles it, too; ``python -m bench resources`` compiles all."""


# --- launch parameters --------------------------------------------------------------


def for_device(table: Mapping[str, Entry], device: torch.device) -> Entry:
    """The entry of a table of launch parameters for ``device``.

    Args:
        table: from each of ``ARCHITECTURES`` to the parameters.
    """
    recorded = _RECORDING.get()
    if recorded is not None:
        return table[recorded.architecture]
    return table[_architecture(device)]


@cache
def _architecture(device: torch.device) -> str:
    """The architecture whose launch parameters serve ``device``."""
    if device.type != "cuda":
        return ARCHITECTURES[0]
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    else:
        major, minor = torch.cuda.get_device_capability(device)
        name = f"sm_{major}{minor}"
    return known_architecture(name)


def known_architecture(name: str) -> str:
    """``name``, or the one of ``ARCHITECTURES`` whose parameters serve it; logs the latter.

    Within the generation of a known NVIDIA part its parameters are used; any other gets
    those of sm_80, which make do with 99 KB of shared memory, as much as every such part has,
    and any other AMD part those of gfx942.
    """
    if name in ARCHITECTURES:
        return name
    if name.startswith("gfx"):
        chosen = "gfx942"
    else:
        generation = f"{name[:-1]}0"
        chosen = generation if generation in ARCHITECTURES else "sm_80"
    _LOG.warning("no launch parameters for %s; using those of %s", name, chosen)
    return chosen
