"""The most memory that a piece of work held."""

from __future__ import annotations

from pathlib import Path

import torch

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Memory held at most since this was made, in bytes.

    On CUDA what torch allocated on the device, on a CPU under Linux what the whole process
    held in memory; elsewhere nothing says.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known = device.type == "cuda" or _reset_process()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def so_far(self) -> int | None:
        """``None`` where nothing says."""
        if not self._known:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        lines = _STATUS.read_text().splitlines()
        (highest,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return 1024 * int(highest)


def _reset_process() -> bool:
    """Have the kernel forget the highest resident size so far; whether it did (``man proc``)."""
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True
