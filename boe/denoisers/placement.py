"""Where a model is put, and in what precision: names on the command line."""

from __future__ import annotations

import torch

DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def dtype_named(name: str) -> torch.dtype | None:
    """The dtype, or ``None`` for "auto": the checkpoint's own.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def require_device(name: str) -> str:
    """``name``, if torch can use that device.

    Raises:
        ValueError: it asks for a GPU and there is none.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is not available: torch sees no GPU")
    return name
