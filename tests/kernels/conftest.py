"""Fixtures of the kernel tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from boe_kernels import _native_library

_VARIANTS = tuple(_native_library.LIBRARY.variants) if _native_library.LIBRARY else ()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of tests for all paths: there is no native one in float64, and none without its library."""
    impossible = []
    for item in items:
        case = getattr(getattr(item, "callspec", None), "params", {})
        if case.get("backend") != "native":
            continue
        if case.get("dtype") == torch.float64:
            impossible.append(item)
        elif _native_library.LIBRARY is None:
            item.add_marker(pytest.mark.skip(f"native kernels: {_native_library.WHY_NOT}"))
    config.hook.pytest_deselected(items=impossible)
    left_out = set(impossible)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(params=_VARIANTS or ["none"])
def native_variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once in each variant of the native kernels that this processor can run."""
    library = _native_library.LIBRARY
    if library is None:
        pytest.skip(f"native kernels: {_native_library.WHY_NOT}")
    monkeypatch.setattr(_native_library, "LIBRARY", replace(library, variant=request.param))
    return request.param
