"""The library compiled from ``csrc/``; importing this module loads it.

It is a plain C library next to the Python files, called through ctypes: it works with
every version of Python and PyTorch. Where it is missing or does not fit, ``WHY_NOT`` says
so and the ops take their other paths.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from ctypes import c_char_p, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import boe_kernels

ABI_VERSION = 2
"""The twin of ``BOE_ABI_VERSION`` in ``csrc/boe_kernels.h``."""

FILE_NAME = {"darwin": "libboe_native.dylib", "win32": "libboe_native.dll"}.get(
    sys.platform, "libboe_native.so"
)

_OUT_OF_MEMORY = 1

# Every kernel begins with the variant and the number of threads, and returns a status.
_ROWS_OF_LOGITS = (c_int32, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64)
_KERNELS: dict[str, tuple[Any, ...]] = {
    "boe_vocabulary_statistics": (*_ROWS_OF_LOGITS, *(c_void_p,) * 6, c_int64),
    "boe_entropy_gradient": (*_ROWS_OF_LOGITS, *(c_void_p,) * 4, c_int64),
    "boe_soft_write_top_k": (
        *(c_int32, c_void_p, c_int64, c_int64, c_int64, c_int64, c_int64, c_int32, c_int64),
        *(c_void_p, c_int64),
        *(c_int32, c_void_p, c_int64, c_int64, c_void_p, c_float),
        *(c_void_p, c_int64, c_void_p),
    ),
    "boe_attention_forward": (c_void_p,),
    "boe_attention_backward": (c_void_p,),
}
_QUESTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "boe_abi_version": (c_int32, ()),
    "boe_variant_count": (c_int32, ()),
    "boe_variant_name": (c_char_p, (c_int32,)),
    "boe_variant_runs": (c_int32, (c_int32,)),
    "boe_has_threads": (c_int32, ()),
}


class UnusableLibraryError(Exception):
    """The library is missing or does not fit; the message is a reason for ``decide``."""


@dataclass(frozen=True)
class NativeLibrary:
    """The loaded library and the variant of its kernels that is to run."""

    functions: ctypes.CDLL
    variants: dict[str, int]
    """Those that this processor can run, by instruction set, fastest first."""
    variant: str
    has_threads: bool

    def run(self, kernel: str, *arguments: float | bytes) -> None:
        """Call a kernel on as many threads as PyTorch uses.

        Raises:
            MemoryError: there was none for the kernel's own use.
        """
        call = getattr(self.functions, kernel)
        status = call(self.variants[self.variant], torch.get_num_threads(), *arguments)
        if status == _OUT_OF_MEMORY:
            raise MemoryError(f"{kernel} could not allocate its working memory")


def load_library(folders: Iterable[str | Path]) -> NativeLibrary:
    """Load the first library in ``folders``.

    Raises:
        UnusableLibraryError: there is none, it cannot be loaded, or it belongs to another
            version of this package.
    """
    path = next((p for folder in folders if (p := Path(folder, FILE_NAME)).is_file()), None)
    if path is None:
        raise UnusableLibraryError(
            f"not built: no {FILE_NAME}, which installing the package with a C++ compiler makes"
        )
    try:
        functions = ctypes.CDLL(str(path))
        functions.boe_abi_version.restype = c_int32
        abi = functions.boe_abi_version()
    except (OSError, AttributeError) as error:
        raise UnusableLibraryError(f"{FILE_NAME} cannot be loaded: {error}") from error
    if abi != ABI_VERSION:
        raise UnusableLibraryError(
            f"{FILE_NAME} has interface version {abi} where {ABI_VERSION} is needed: "
            "install the package again"
        )
    for name, (result, arguments) in _QUESTIONS.items():
        _declare(functions, name, result, arguments)
    for name, arguments in _KERNELS.items():
        _declare(functions, name, c_int32, (c_int32, c_int32, *arguments))
    variants = {
        functions.boe_variant_name(number).decode(): number
        for number in range(functions.boe_variant_count())
        if functions.boe_variant_runs(number)
    }
    return NativeLibrary(
        functions, variants, next(iter(variants)), bool(functions.boe_has_threads())
    )


def _declare(functions: ctypes.CDLL, name: str, result: Any, arguments: tuple[Any, ...]) -> None:
    function = getattr(functions, name)
    function.restype, function.argtypes = result, arguments


def library() -> NativeLibrary:
    """The loaded library.

    Raises:
        RuntimeError: it cannot be used here.
    """
    if LIBRARY is None:
        raise RuntimeError(f"the native kernels cannot run: {WHY_NOT}")
    return LIBRARY


LIBRARY: NativeLibrary | None = None
WHY_NOT: str | None = None
try:
    # An editable installation keeps it in another folder of the package than the sources.
    LIBRARY = load_library(boe_kernels.__path__)
except UnusableLibraryError as error:
    WHY_NOT = str(error)
