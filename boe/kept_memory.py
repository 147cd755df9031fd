"""Keeping freed memory in the process, for loops that need the same amount again and again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD = -1  # glibc's M_TRIM_THRESHOLD: free bytes at the heap's end that it keeps
_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD: larger blocks are not part of the heap
_ADAPTED_MMAP_THRESHOLD = 32 * 2**20
"""As far as glibc raises its own threshold by itself on 64-bit systems (``man mallopt``)."""


@contextmanager
def kept_memory() -> Iterator[None]:
    """What is freed while it lasts stays with the process until the end, for the next request.

    A training step frees its activations and takes as much again. By default glibc returns
    them to the system in between, which hands them out anew page by page, each cleared: on a
    virtual machine a tenth of a step goes into that. Where the C library is another than
    glibc nothing is done. The setting holds for all threads of the process.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_MMAP_THRESHOLD, 2**30)
    try:
        yield
    finally:
        # What glibc adapts to by itself once blocks of that size have been freed.
        libc.mallopt(_MMAP_THRESHOLD, _ADAPTED_MMAP_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _ADAPTED_MMAP_THRESHOLD)
        libc.malloc_trim(0)
