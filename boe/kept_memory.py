"""Keeping freed memory in the process, for loops that need the same amount again and again."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD = -1  # glibc's M_TRIM_THRESHOLD: free bytes at the heap's end that it keeps
_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD: larger blocks are not part of the heap
_ADAPTED_MMAP_THRESHOLD = 32 * 2**20
"""As far as glibc raises its own threshold by itself on 64-bit systems (``man mallopt``)."""
_CHOSEN_BY_THE_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables by which glibc is told the thresholds from outside."""


@contextmanager
def kept_memory() -> Iterator[None]:
    """What is freed while it lasts stays with the process until the end, for the next request.

    A training step frees its activations and takes as much again. By default glibc returns
    them to the system in between, which hands them out anew page by page, each cleared: on a
    virtual machine a tenth of a step goes into that. The setting holds for all threads of the
    process. Nothing is done where the C library is another than glibc, nor where one of
    MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and GLIBC_TUNABLES is in the environment.

    Afterwards the thresholds are those that glibc goes up to by itself, 32 MiB for blocks of
    their own and 64 MiB for what is kept at the heap's end; it adapts them no more.
    """
    chosen = any(name in os.environ for name in _CHOSEN_BY_THE_USER)
    libc = ctypes.CDLL(None) if sys.platform == "linux" and not chosen else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    if not libc.mallopt(_MMAP_THRESHOLD, 2**30):
        # glibc before 2.35 takes no larger one; and once it is told one, it adapts none.
        libc.mallopt(_MMAP_THRESHOLD, _ADAPTED_MMAP_THRESHOLD)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        # What glibc adapts to by itself once blocks of that size have been freed.
        libc.mallopt(_MMAP_THRESHOLD, _ADAPTED_MMAP_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _ADAPTED_MMAP_THRESHOLD)
        libc.malloc_trim(0)
