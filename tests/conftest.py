"""Settings and fixtures of all tests.

Being here, this file also makes the modules beside it (``tiny_models`` …) importable.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from functools import partialmethod
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

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
    """Makes Triton's interpreter quicker and, where it is wrong, right."""
    if find_spec("triton") is None or os.environ["TRITON_INTERPRET"] != "1":
        return
    from quick_interpreter import make_quick

    make_quick()
    if Version(version("triton")) < Version("3.8"):
        _repair_the_interpreter()


def pytest_collection_finish() -> None:
    """What the tests import lives to the end: no search for garbage need go through it again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Modules that count what is left of them at the end of the process would complain."""
    gc.unfreeze()


def _repair_the_interpreter() -> None:
    """Before 3.8 it differs from compiled code.

    Its maxima and minima keep NaN that they should drop; with NumPy 2 it cannot invert the bits
    of unsigned integers.
    """
    import numpy
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _get_np_dtype

    for name, chosen in (("create_maxnumf", numpy.fmax), ("create_minnumf", numpy.fmin)):
        setattr(InterpreterBuilder, name, partialmethod(InterpreterBuilder.binary_op, op=chosen))

    def ones(self: InterpreterBuilder, kind: Any) -> TensorHandle:
        return TensorHandle(~numpy.zeros(1, _get_np_dtype(kind)), kind.scalar)

    InterpreterBuilder.get_all_ones_value = ones


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
