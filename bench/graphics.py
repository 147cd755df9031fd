"""What the system says about its GPU: driver, clocks, power, and what else limits its speed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import torch

_UNKNOWN = "unknown"

# Fields of nvidia-smi, by the name under which they are reported.
NVIDIA_FIELDS = {
    "driver": "driver_version",
    "power limit (W)": "power.limit",
    "default power limit (W)": "power.default_limit",
    "highest SM clock (MHz)": "clocks.max.sm",
    "SM clock now (MHz)": "clocks.sm",
    "highest memory clock (MHz)": "clocks.max.mem",
    "temperature now (°C)": "temperature.gpu",
    "clocks held back now by": "clocks_throttle_reasons.active",
    "MIG": "mig.mode.current",
    "ECC": "ecc.mode.current",
    "persistence": "persistence_mode",
}


def driver_version() -> str:
    """Of the kernel's driver."""
    found = _nvidia_smi("driver_version")
    if found is not None:
        return found
    for path, pattern in (
        ("/proc/driver/nvidia/version", r"\s(\d+\.\d+(?:\.\d+)?)\s"),
        ("/sys/module/amdgpu/version", r"(\S+)"),
    ):
        file = Path(path)
        matched = re.search(pattern, file.read_text()) if file.exists() else None
        if matched:
            return matched[1]
    return _UNKNOWN


def gpu_facts(device: torch.device) -> dict[str, str]:
    """What can be known of ``device`` by name; ``unknown`` where the system does not tell."""
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 0)
    facts = {
        "capability": f"{properties.major}.{properties.minor}",
        "memory (MiB)": str(properties.total_memory >> 20),
        "multiprocessors": str(properties.multi_processor_count),
        "L2 cache (KiB)": str(properties.L2_cache_size >> 10),
        "shared memory per block (KiB)": str(max(shared, properties.shared_memory_per_block) >> 10),
    }
    # One at a time: a field that an old driver does not know costs no other.
    for name, field in NVIDIA_FIELDS.items():
        facts[name] = _nvidia_smi(field) or _UNKNOWN
    if facts["driver"] == _UNKNOWN:
        facts["driver"] = driver_version()
    return facts


def _nvidia_smi(field: str) -> str | None:
    """A field of the first GPU; ``None`` without nvidia-smi, or where it does not know it."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    text = done.stdout.strip()
    unknown = not text or any(word in text.lower() for word in ("not supported", "n/a"))
    return None if unknown else text
