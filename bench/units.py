"""What the hardware has that kernels are compiled for: registers, shared memory, warps.

From the vendors' published tables. Parts without launch parameters of their own are there too, as
far as kernels are compiled for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from boe_kernels._triton import SHARED_MEMORY, known_architecture


@dataclass(frozen=True)
class Architecture:
    """What one multiprocessor (NVIDIA) or compute unit (AMD) has to share out."""

    name: str
    backend: str
    target: int | str
    lanes: int
    registers: int
    """32-bit registers of the whole unit."""
    registers_per_lane: int
    register_unit: int
    """Registers per lane are handed out in multiples of this."""
    shared: int
    """Bytes of shared memory."""
    shared_per_group: int
    """Of which one thread block may have so much."""
    shared_overhead: int
    """Bytes that the system takes for every thread block."""
    warps: int
    groups: int
    """Thread blocks at once, whatever they need."""
    tensor_columns: int = 0
    """Columns of tensor memory."""

    @property
    def parameters(self) -> str:
        """The architecture whose launch parameters it runs by."""
        return known_architecture(self.name, self.shared_per_group)


def _nvidia_unit(capability: int, kilobytes: int, warps: int, groups: int) -> Architecture:
    """A multiprocessor of NVIDIA's with so much shared memory, of which the system takes 1 KB."""
    name, shared = f"sm_{capability}", kilobytes << 10
    per_group = SHARED_MEMORY.get(name, shared - (1 << 10))
    columns = 512 if capability == 100 else 0
    sizes = (32, 65536, 255, 8, shared, per_group, 1 << 10, warps, groups, columns)
    return Architecture(name, "cuda", capability, *sizes)


_AMD_UNIT = Architecture(
    "gfx942", "hip", "gfx942", 64, 131072, 512, 8, 64 << 10, SHARED_MEMORY["gfx942"], 0, 32, 32
)

TARGETS = {
    unit.name: unit
    for unit in (
        _nvidia_unit(80, 164, 64, 32),
        _nvidia_unit(90, 228, 64, 32),
        _nvidia_unit(100, 228, 64, 32),
        _AMD_UNIT,
    )
}
"""Those with launch parameters of their own."""

UNITS = {
    **TARGETS,
    **{
        unit.name: unit
        for unit in (
            _nvidia_unit(86, 100, 48, 16),
            _nvidia_unit(89, 100, 48, 24),
            _nvidia_unit(120, 100, 48, 24),
        )
    },
}
"""And parts that run by the parameters of another."""
