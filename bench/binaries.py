"""The binaries of the Triton kernels, compiled ahead of time: no GPU is needed.

Each op's launchers run on meta tensors and are recorded (``boe_kernels._triton.recording``);
what they would launch is compiled as the launch itself would compile it, with a stand-in
for the GPU's driver that answers one question: which target.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import pkgutil
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from typing import Any

import boe_kernels
from bench.units import UNITS
from boe_kernels._triton import AotCase, Launch, interpreting, recording


@dataclass(frozen=True)
class Binary:
    """One compiled kernel and what it asks of the hardware."""

    op: str
    case: str
    """The first case of the op that launches it."""
    kernel: str
    architecture: str
    options: str
    """Its constexprs and launch options."""
    error: str = ""
    """Why it does not compile; the figures are 0 then."""
    warps: int = 0
    registers: int = 0
    """Per lane; on AMD architectural and accumulation registers together."""
    spilled: int = 0
    """Bytes per lane that are stored to memory for want of registers."""
    shared: int = 0
    tensor_columns: int = 0

    @property
    def resident_warps(self) -> int:
        """How many warps fit one multiprocessor at once, an upper estimate."""
        unit = UNITS[self.architecture]
        per_lane = -(-max(self.registers, 1) // unit.register_unit) * unit.register_unit
        limits = [
            unit.groups,
            unit.warps // self.warps,
            unit.registers // (per_lane * unit.lanes * self.warps),
            unit.shared // max(1, self.shared + unit.shared_overhead),
        ]
        if self.tensor_columns:
            limits.append(unit.tensor_columns // self.tensor_columns)
        return min(limits) * self.warps

    @property
    def occupancy(self) -> float:
        """``resident_warps`` as a share of what the hardware can hold."""
        return self.resident_warps / UNITS[self.architecture].warps

    @property
    def complaint(self) -> str:
        """Why this binary should not be shipped; empty when there is nothing to object to."""
        limit = UNITS[self.architecture].shared_per_group
        if self.error:
            return f"does not compile: {self.error}"
        if self.spilled:
            return f"spills {self.spilled} bytes per lane"
        if self.shared > limit:
            return f"needs {self.shared} bytes of shared memory, more than {limit}"
        return ""


def packages_with_kernels() -> tuple[str, ...]:
    """The ops' packages that have a ``triton`` module, by name."""
    names = (info.name for info in pkgutil.iter_modules(boe_kernels.__path__) if info.ispkg)
    return tuple(name for name in names if find_spec(f"boe_kernels.{name}.triton"))


def aot_cases(package: str) -> list[AotCase]:
    """What an op's modules of kernels, ``triton`` and ``triton_fused``, list for compilation."""
    names = (f"boe_kernels.{package}.{module}" for module in ("triton", "triton_fused"))
    modules = (importlib.import_module(name) for name in names if find_spec(name))
    return [case for module in modules for case in module.aot_cases()]


@dataclass(frozen=True)
class Wanted:
    """A binary that is to be compiled: a launch of a case."""

    op: str
    case: str
    kernel: str
    architecture: str
    options: str
    number: int
    """Which of the case's launches it is."""
    key: str
    """Tells whether another binary is the same: of sources, arguments, options and compiler."""

    def compile(self) -> Binary:
        """Compile it."""
        case = next(case for case in aot_cases(self.op) if case.name == self.case)
        facts = (self.op, self.case, self.kernel, self.architecture, self.options)
        with _target(self.architecture) as device:
            with recording(UNITS[self.architecture].parameters) as launches:
                case.call()
            return _binary(facts, launches[self.number], device)


def wanted_binaries(package: str, architecture: str, sample: bool = False) -> list[Wanted | Binary]:
    """Every distinct binary that the cases of an op need; a launcher that fails, as its error.

    Args:
        sample: only those of the cases that are marked as samples.
    """
    if interpreting():
        raise RuntimeError("kernels cannot be compiled under TRITON_INTERPRET=1: unset it")
    found: dict[str, Wanted | Binary] = {}
    with _target(architecture) as device:
        for case in aot_cases(package):
            if sample and not case.sample:
                continue
            try:
                with recording(UNITS[architecture].parameters) as launches:
                    case.call()
                keys = [_key(launch, device, architecture) for launch in launches]
            except Exception as error:
                # A launcher that fails must not hide the binaries of the others.
                why = f"{type(error).__name__}: {error}"
                failed = Binary(package, case.name, "launcher", architecture, "", error=why)
                found[f"{case.name} failed"] = failed
                continue
            for number, (launch, key) in enumerate(zip(launches, keys, strict=True)):
                options = ", ".join(f"{name}={value}" for name, value in launch.options.items())
                kernel = launch.kernel.__name__
                wanted = Wanted(package, case.name, kernel, architecture, options, number, key)
                found.setdefault(key, wanted)
    return list(found.values())


def _key(launch: Launch, device: str, architecture: str) -> str:
    import triton

    key = _specialisation(launch, device).key
    parts = (triton.__version__, architecture, launch.kernel.cache_key, key)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Specialisation:
    """What Triton makes of the arguments of a launch before it compiles anything."""

    key: str
    """Launches with the same key run the same binary."""
    integers: dict[str, tuple[int, str]]
    """Value and type of the integer arguments by name."""


def specialisations(call: Callable[[], object], architecture: str) -> list[Specialisation]:
    """Those of the launches that ``call`` makes on meta tensors."""
    with _target(architecture) as device, recording(UNITS[architecture].parameters) as launches:
        call()
        return [_specialisation(launch, device) for launch in launches]


def _specialisation(launch: Launch, device: str) -> Specialisation:
    from triton.runtime.jit import compute_cache_key

    *_, binder = launch.kernel.device_caches[device]
    arguments, types, options = binder(*launch.args, **launch.options)
    integers = {
        name: (value, kind)
        for (name, value), (kind, *_) in zip(arguments.items(), types, strict=True)
        if isinstance(value, int) and kind != "constexpr"
    }
    key = f"{launch.kernel.__name__}: {compute_cache_key({}, types, options)}"
    return Specialisation(key, integers)


def binaries_of(call: Callable[[], object], architecture: str, kernel: str) -> Iterator[Binary]:
    """Those of one kernel that ``call`` would launch on meta tensors, as they are compiled.

    They are left in Triton's cache, where launches on such a GPU find them.
    """
    with _target(architecture, kept=True) as device:
        with recording(UNITS[architecture].parameters) as launches:
            call()
        chosen = (launch for launch in launches if launch.kernel.__name__ == kernel)
        for launch in {_key(launch, device, architecture): launch for launch in chosen}.values():
            yield _binary(("", "", kernel, architecture, ""), launch, device)


def assembly(call: Callable[[], object], architecture: str) -> list[str]:
    """PTX, or AMD's assembly, of the launches that ``call`` makes on meta tensors."""
    texts = []
    with _target(architecture), recording(UNITS[architecture].parameters) as launches:
        call()
        for launch in launches:
            with contextlib.redirect_stdout(io.StringIO()):
                made = launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)
            texts.append(made.asm["amdgcn" if "amdgcn" in made.asm else "ptx"])
    return texts


def performance_remarks(
    call: Callable[[], object], architecture: str, kernel: str
) -> dict[str, list[str]]:
    """What NVIDIA's assembler says costs speed, by the options of the kernel's launches."""
    found: dict[str, list[str]] = {}
    with _target(architecture), recording(UNITS[architecture].parameters) as launches:
        call()
        for launch in launches:
            if launch.kernel.__name__ == kernel:
                log = io.StringIO()
                with contextlib.redirect_stdout(log):
                    launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)
                lines = log.getvalue().splitlines()
                remarks = [line for line in lines if "Potential Performance Loss" in line]
                found[f"{launch.options}"] = remarks
    return found


def _binary(facts: tuple[str, str, str, str, str], launch: Launch, device: str) -> Binary:
    """Of a launch; ``facts`` are the first fields."""
    try:
        return Binary(*facts, **_compiled_resources(launch))
    except Exception as error:
        return Binary(*facts, error=f"{type(error).__name__}: {error}")
    finally:
        # The kernel would keep every binary it was ever compiled to.
        launch.kernel.device_caches.pop(device, None)


def _compiled_resources(launch: Launch) -> dict[str, Any]:
    """Compile a launch and tell what its binary asks of the hardware, as in ``Binary``."""
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)
    metadata = compiled.metadata
    return {
        **(_amd(compiled) if "amdgcn" in compiled.asm else _nvidia(log.getvalue())),
        "warps": metadata.num_warps,
        "shared": metadata.shared,
        "tensor_columns": getattr(metadata, "tmem_size", 0) or 0,
    }


def _nvidia(log: str) -> dict[str, int]:
    """From what the assembler said while it made the binary."""
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    if not registers:
        raise RuntimeError(f"the assembler's log names no registers: {log!r}")
    stores = sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", log))
    loads = sum(int(n) for n in re.findall(r"(\d+) bytes spill loads", log))
    return {"registers": max(registers), "spilled": max(stores, loads)}


def _amd(compiled: Any) -> dict[str, int]:
    """From the metadata that the assembly carries."""

    def figure(name: str) -> int:
        return max(int(n) for n in re.findall(rf"\.{name}:\s+(\d+)", compiled.asm["amdgcn"]))

    return {"registers": figure("vgpr_count"), "spilled": 4 * figure("vgpr_spill_count")}


class _Driver:
    """Stands in for a GPU's driver: kernels can be compiled through it but not run."""

    _made = count()

    def __init__(self, architecture: str) -> None:
        from triton.backends.compiler import GPUTarget

        unit = UNITS[architecture]
        self._target = GPUTarget(unit.backend, unit.target, unit.lanes)
        # Another device every time, so that no kernel is remembered from the last one.
        self._device = f"{architecture}, {next(self._made)}"

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> str:
        return self._device

    def get_current_stream(self, device: str) -> int:
        return 0


@contextlib.contextmanager
def _target(architecture: str, *, kept: bool = False) -> Iterator[str]:
    """Compile for ``architecture``, afresh, with the assembler telling what it does.

    Args:
        kept: put what is compiled into Triton's cache; otherwise nothing is kept.

    Yields:
        The name that kernels know the stand-in for the device by.
    """
    from triton import knobs
    from triton.runtime import driver

    with (
        tempfile.TemporaryDirectory(prefix="boe-binaries-") as folder,
        knobs.nvidia.scope(),
        knobs.cache.scope(),
        knobs.compilation.scope(),
    ):
        if kept:
            # What the cache holds would not be assembled.
            knobs.compilation.always_compile = True
        else:
            knobs.cache.dir = os.fspath(folder)
        knobs.nvidia.dump_ptxas_log = True
        # It stays: this process compiles and launches nothing.
        stand_in = _Driver(architecture)
        driver.set_active(stand_in)
        yield stand_in.get_current_device()
