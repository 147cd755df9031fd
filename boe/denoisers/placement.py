"""Where a model is put, in what precision, compiled or not: names on the command line."""

from __future__ import annotations

from typing import TypeVar

import torch

from boe.denoisers.attention_denoiser import AttentionDenoiser

DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

COMPILATION = ("none", "network", "graphs")
"""As it is, compiled, or compiled and captured in CUDA graphs."""


def dtype_named(name: str) -> torch.dtype | None:
    """The dtype, or ``None`` for "auto": the checkpoint's own.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


Device = TypeVar("Device", bound=str | torch.device)


def require_device(device: Device) -> Device:
    """``device``, if torch can use it.

    Raises:
        ValueError: torch knows no such device, or it asks for a GPU that is not there.
    """
    try:
        known = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device must be one of torch's, such as cuda:1, got {device!r}"
        ) from error
    if known.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {str(device)!r} is not available: torch sees no GPU")
        count = torch.cuda.device_count()
        if known.index is not None and known.index >= count:
            raise ValueError(f"device {str(device)!r} is not available: torch sees {count} GPUs")
    return device


def check_compilation(name: str) -> None:
    """Raises a ValueError unless ``name`` is one of :data:`COMPILATION`."""
    if name not in COMPILATION:
        raise ValueError(f"compile must be one of {', '.join(COMPILATION)}, got {name!r}")


def compiled_as(name: str, denoiser: AttentionDenoiser) -> AttentionDenoiser:
    """``denoiser`` itself for "none", else a :class:`boe.CompiledDenoiser` of it.

    Raises:
        ValueError: the name is unknown, or CUDA graphs on another device.
        UnsupportedModel: it cannot be compiled.
    """
    check_compilation(name)
    if name == "none":
        return denoiser
    from boe.denoisers.compiled import CompiledDenoiser

    # Anything else than a transformers denoiser is refused there, with the reason.
    return CompiledDenoiser(denoiser, cuda_graphs=name == "graphs")  # type: ignore[arg-type]
