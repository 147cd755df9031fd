"""Without lm-eval the modules here are skipped, but for the one about its absence.

Being here, this file also makes ``toy_lm`` importable.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

try:
    import_module("boe.lm_eval")
    ABSENCE = None
except ImportError as error:
    ABSENCE = str(error)

NEEDS_NOTHING = ("test_lm_eval_absent.py",)


class _Absent(pytest.Module):
    def collect(self) -> Iterator[pytest.Item]:
        pytest.skip(ABSENCE or "")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> object | None:
    here = module_path.parent == Path(__file__).parent
    if here and ABSENCE is not None and module_path.name not in NEEDS_NOTHING:
        return _Absent.from_parent(parent, path=module_path)
    return None


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would ask the Hub fails at once."""
    if ABSENCE is None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
