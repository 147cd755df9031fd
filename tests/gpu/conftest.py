"""The tests that need a GPU: what they skip without one, and at which sizes they run anyway.

``pytest tests/gpu --interpret`` runs those that can be run on a CPU, under Triton's
interpreter, so that the tests themselves do not rot between two GPUs.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--interpret", action="store_true", help="run what a CPU can, under Triton's interpreter"
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "gpu: needs a CUDA device",
        "device_only: makes no sense, or takes too long, under the interpreter",
        "sanitized: belongs to the selection that runs under compute-sanitizer",
    ):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    interpret = config.getoption("--interpret", default=False)
    ours = bool(items) and all(FOLDER in item.path.parents for item in items)
    if ours and not interpret and torch.cuda.is_available() and _why_not():
        # All would be skipped, which looks as if all were well.
        pytest.exit(_why_not(), returncode=pytest.ExitCode.USAGE_ERROR)
    for item in items:
        if FOLDER not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        if interpret:
            # NumPy need not tell of the NaN and ∞ that the kernels hold.
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
        why = _why_not_interpreted(item) if interpret else _why_not()
        if why:
            item.add_marker(pytest.mark.skip(reason=why))


def _why_not() -> str:
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1: the kernels would run on the CPU; set it to 0"
    return ""


def _why_not_interpreted(item: pytest.Item) -> str:
    if item.get_closest_marker("device_only"):
        return "needs a CUDA device"
    callspec = getattr(item, "callspec", None)
    if callspec is not None and callspec.params.get("dtype") == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly"
    return ""


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run."""
    return torch.device("cpu" if request.config.getoption("--interpret", default=False) else "cuda")
