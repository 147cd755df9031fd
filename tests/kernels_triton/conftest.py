"""Fixtures of the tests that run Triton kernels in its interpreter.

In float32 and float16 only: the interpreter computes bfloat16 wrongly. The kernels widen
every operand to float32 as it is loaded, so that bfloat16 takes no code of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy
import pytest
import triton


def _release(version: str) -> tuple[int, ...]:
    """Major and minor."""
    return tuple(int(part) for part in version.split(".")[:2])


OLD_INTERPRETER = _release(triton.__version__) < (3, 7) and _release(numpy.__version__) >= (2, 4)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Triton 3.6's interpreter cannot loop to run-time bounds with NumPy 2.4."""
    if OLD_INTERPRETER:
        skip = pytest.mark.skip(reason="this Triton's interpreter needs NumPy < 2.4")
        for item in items:
            if "interpreted" in getattr(item, "fixturenames", ()):
                item.add_marker(skip)


@pytest.fixture
def interpreted() -> Iterator[None]:
    """For tests that run kernels; NumPy need not tell of the NaN and ∞ that they hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
