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

WIDEST_HEAD = 256
"""The largest head dimension of the attention kernels."""

SHARED_MEMORY = {
    # What a thread block of sm_86, sm_89 and sm_120 may have, which run these parameters, too;
    # one of sm_80 may have 163 KB.
    "sm_80": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "gfx942": 64 << 10,
}
"""Bytes of shared memory that a thread block may take by the launch parameters of each."""

ARCHITECTURES = tuple(SHARED_MEMORY)
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
        # A constant under torch.compile, which get_device_capability is not.
        properties = torch.cuda.get_device_properties(device)
        capability = (properties.major, properties.minor)
        if torch.version.hip is None and capability < _LEAST_CAPABILITY:
            return f"needs compute capability 8.0, got {capability[0]}.{capability[1]}"
        return None
    if device.type != "cpu" or not interpreting():
        return f"needs a GPU, got {device.type}"
    if dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly"
    return None


def why_not_heads(width: int) -> str | None:
    """Why the attention kernels cannot run for heads of ``width``."""
    if width <= WIDEST_HEAD:
        return None
    return f"the kernels take heads of at most {WIDEST_HEAD} dimensions, got {width}"


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

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for launches that run the same binary, where tensors begin at 16 bytes.

        What Triton compiles into a binary: types, which tensors are absent, and of the
        integers that it is not told to leave alone whether they are 1 and divisible by 16.
        """
        runtime = _runtime_arguments(self.kernel)
        # The interpreter's functions have more names: those of the constexprs.
        named = zip(self.kernel.arg_names, self.args, strict=False)
        kinds = tuple(_kind(value, name in runtime) for name, value in named)
        return self.kernel.__name__, kinds, tuple(sorted(self.options.items(), key=str))


def _runtime_arguments(kernel: Any) -> tuple[str, ...]:
    """The arguments that the kernel is not to be specialised for."""
    if hasattr(kernel, "do_not_specialize"):
        return tuple(kernel.do_not_specialize)
    # A function of the interpreter.
    return tuple(kernel.kwargs.get("do_not_specialize") or ())


def _kind(value: Any, runtime: bool) -> Any:
    """What of an argument decides the binary."""
    if isinstance(value, torch.Tensor):
        return value.dtype
    if isinstance(value, int) and not isinstance(value, bool):
        wide = not -(2**31) <= value < 2**31
        return ("int", wide) if runtime else ("int", wide, value == 1, value % 16 == 0)
    return type(value)


@dataclass(frozen=True)
class _Recording:
    architecture: str
    launches: list[Launch]
    run: bool


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
        if not recorded.run:
            return
    device = args[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*args, **options)
    else:
        kernel[grid](*args, **options)


@contextmanager
def recording(architecture: str, *, run: bool = False) -> Iterator[list[Launch]]:
    """Collect the launches made inside the ``with`` block, as on ``architecture``.

    Nothing runs unless ``run``, so meta tensors will do; outputs are left as they were
    allocated. What runs inside another recording belongs to that one, too.
    """
    launches: list[Launch] = []
    around = _RECORDING.get()
    token = _RECORDING.set(_Recording(architecture, launches, run))
    try:
        yield launches
    finally:
        _RECORDING.reset(token)
        if run and around is not None:
            around.launches.extend(launches)


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
    return table[architecture_of(device)]


@cache
def architecture_of(device: torch.device) -> str:
    """The architecture whose launch parameters serve ``device``; logs it if it is another.

    Raises:
        RuntimeError: the device has less shared memory than any of them takes.
    """
    name, chosen = named_architecture(device)
    if chosen != name:
        _LOG.warning("no launch parameters for %s; using those of %s", name, chosen)
    return chosen


def named_architecture(device: torch.device) -> tuple[str, str]:
    """The architecture of ``device``, and the one whose launch parameters serve it.

    For decisions, which ``torch.compile`` traces: it refuses loggers, and warns of caches.

    Raises:
        RuntimeError: as :func:`architecture_of`.
    """
    if device.type != "cuda":
        return ARCHITECTURES[0], ARCHITECTURES[0]
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        name = properties.gcnArchName.split(":")[0]
    else:
        name = f"sm_{properties.major}{properties.minor}"
    # More than the default has to be asked for, which Triton does; HIP knows no such thing.
    shared = max(
        properties.shared_memory_per_block,
        getattr(properties, "shared_memory_per_block_optin", 0),
    )
    return name, known_architecture(name, shared)


def known_architecture(name: str, shared: int) -> str:
    """``name``, or the one of ``ARCHITECTURES`` whose parameters serve it.

    Of the known ones that take no more than ``shared`` bytes of shared memory the generation's
    own is preferred; another part of NVIDIA gets those of sm_80, another of AMD those of gfx942.

    Raises:
        RuntimeError: none takes so little.
    """
    others = ["gfx942"] if name.startswith("gfx") else [f"{name[:-1]}0", "sm_80"]
    candidates = dict.fromkeys((name, *others))
    known = [each for each in candidates if each in SHARED_MEMORY]
    chosen = next((each for each in known if SHARED_MEMORY[each] <= shared), None)
    if chosen is None:
        least = min(SHARED_MEMORY[each] for each in known)
        raise RuntimeError(
            f"the kernels need {least >> 10} KB of shared memory per thread block, and {name} "
            f"has {shared >> 10}: use backend='library'"
        )
    return chosen
