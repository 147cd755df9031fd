"""Settings and fixtures of all tests.

Being here, this file also makes the modules beside it (``tiny_models`` …) importable.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partialmethod
from importlib.metadata import version
from importlib.util import find_spec

# Triton decides when it is first imported: its kernels run in its interpreter, on the CPU.
# On a GPU machine TRITON_INTERPRET=0 lets them run there.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from packaging.version import Version
from torch import Tensor

# Tensors are tiny here: further threads would only wait for each other.
torch.set_num_threads(1)


def pytest_configure() -> None:
    """Repairs what Triton's interpreter gets wrong before 3.8, and compiled code right.

    Maxima and minima keep NaN that they should drop; the inverse of 64 bits without a sign fails.
    """
    if find_spec("triton") is None or Version(version("triton")) >= Version("3.8"):
        return
    import numpy
    from triton.runtime.interpreter import InterpreterBuilder

    for name, chosen in (("create_maxnumf", numpy.fmax), ("create_minnumf", numpy.fmin)):
        setattr(InterpreterBuilder, name, partialmethod(InterpreterBuilder.binary_op, op=chosen))
    unsigned = InterpreterBuilder.get_uint64
    InterpreterBuilder.get_uint64 = lambda self, value: unsigned(self, value % 2**64)


@pytest.fixture
def poisoned_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory that boe_kernels asks for holds NaN (integers: the least value).

    A result that some path forgets to write then fails every comparison, instead of
    passing whenever the allocator happens to return zeros.
    """

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(*args: object, **kwargs: object) -> Tensor:
            result = allocate(*args, **kwargs)
            if sys._getframe(1).f_globals.get("__name__", "").startswith("boe_kernels"):
                floating = result.is_floating_point()
                result.fill_(torch.nan if floating else torch.iinfo(result.dtype).min)
            return result

        return wrapper

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No compiled code from other tests before, and none left for them after."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
