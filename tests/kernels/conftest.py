"""Fixtures of the kernel tests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from boe_kernels import _native_library

_VARIANTS = tuple(_native_library.LIBRARY.variants) if _native_library.LIBRARY else ()


@pytest.fixture(params=_VARIANTS or ["none"])
def native_variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once in each variant of the native kernels that this processor can run."""
    library = _native_library.LIBRARY
    if library is None:
        pytest.skip(f"native kernels: {_native_library.WHY_NOT}")
    monkeypatch.setattr(_native_library, "LIBRARY", replace(library, variant=request.param))
    return request.param
