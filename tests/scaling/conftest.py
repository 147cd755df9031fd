"""Being here, this file makes the modules beside it importable."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoints import save_tiny_bert

from boe.denoisers.loading import LoadedModel, load_model


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("scaling") / "model")


@pytest.fixture(scope="session")
def loaded(tiny_bert: Path) -> LoadedModel:
    return load_model(tiny_bert)
