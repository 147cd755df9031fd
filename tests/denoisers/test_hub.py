"""Models of the Hub, from a cache laid out as its client does, without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published_checkpoints import LLADA, random_state, save_words, write_checkpoint
from tiny_checkpoints import save_tiny_bert
from transformers import AutoModelForMaskedLM

from boe import load_model

OLD, NEW = "1" * 40, "2" * 40
LOADS = """
import sys
from boe import load_model

revision = sys.argv[2] or None
loaded = load_model(sys.argv[1], revision=revision)
print(float(loaded.denoiser.embedding_table.double().sum()))
"""


def in_cache(hub: Path, name: str, snapshots: dict[str, Path], refs: dict[str, str]) -> None:
    """A repository as ``huggingface_hub`` keeps it: commits, and the names that mean them."""
    home = hub / f"models--{name.replace('/', '--')}"
    for commit, folder in snapshots.items():
        shutil.copytree(folder, home / "snapshots" / commit)
    (home / "refs").mkdir()
    for ref, commit in refs.items():
        (home / "refs" / ref).write_text(commit)


def loaded_sum(home: Path, name: str, revision: str) -> float:
    # The client reads where its cache is when it is imported.
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    run = subprocess.run(
        [sys.executable, "-c", LOADS, name, revision],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


@pytest.mark.parametrize("kind", ["published", "transformers"])
def test_a_revision_is_what_is_loaded(kind: str, tmp_path: Path) -> None:
    sums = {}
    for number, commit in enumerate((OLD, NEW)):
        folder = tmp_path / commit
        if kind == "published":
            state = random_state(LLADA, torch.float32, seed=number)
            save_words(write_checkpoint(folder, LLADA, state))
            table = state["model.transformer.wte.weight"]
        else:
            save_tiny_bert(folder)
            model = AutoModelForMaskedLM.from_pretrained(folder)
            with torch.no_grad():
                model.get_input_embeddings().weight.add_(number)
            model.save_pretrained(folder)
            table = model.get_input_embeddings().weight
        sums[commit] = float(table.detach().double().sum())
    in_cache(
        tmp_path / "home" / "hub",
        "someone/tiny",
        {commit: tmp_path / commit for commit in sums},
        {"main": NEW, "v1": OLD},
    )
    found = {r: loaded_sum(tmp_path / "home", "someone/tiny", r) for r in ("", "v1", NEW)}
    assert found == {"": sums[NEW], "v1": sums[OLD], NEW: sums[NEW]}
    assert sums[OLD] != sums[NEW]


def test_a_revision_of_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"revision is for ids of the Hub, but .* is a directory"):
        load_model(save_tiny_bert(tmp_path), revision="main")
