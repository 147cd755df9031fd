"""When the native CPU kernels can run.

Importing this module loads no compiled code; ``_native_library`` does.
"""

from __future__ import annotations

import torch

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The data that the kernels take, with its number in ``csrc/boe_kernels.h``."""


def why_not_native(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a native kernel cannot run for tensors of ``dtype`` on ``device``."""
    if device.type != "cpu":
        return f"needs the CPU, got {device.type}"
    if dtype not in DTYPES:
        return f"the kernels take float32, bfloat16 and float16, got {dtype}"
    # Imported here so that the library is loaded by the first call that may need it. (An
    # import is also what torch.compile runs, rather than traces, in the code it compiles.)
    from boe_kernels import _native_library

    return _native_library.WHY_NOT


def native_kernels() -> str:
    """The native kernels in words: instruction set and threads, or why there are none."""
    from boe_kernels._native_library import LIBRARY, WHY_NOT

    if LIBRARY is None:
        return str(WHY_NOT)
    return f"{LIBRARY.variant}, {'OpenMP' if LIBRARY.has_threads else 'one thread'}"
