"""Every Triton kernel, compiled ahead of time; all configurations: python -m bench resources."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from uninterpreted import environment

from bench.binaries import TARGETS, Binary, packages_with_kernels
from boe_kernels._triton import ARCHITECTURES


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> list[Binary]:
    """Compiled in another process, because this one imports Triton to interpret."""
    folder = tmp_path_factory.mktemp("binaries")
    figures, kept = folder / "binaries.json", folder / "kept.jsonl"
    files = ["--json", str(figures), "--kept", str(kept)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.resources", "--sample", *files],
        cwd=Path(__file__).parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert figures.exists(), done.stdout + done.stderr
    return [Binary(**facts) for facts in json.loads(figures.read_text())]


def test_every_architecture_with_launch_parameters_is_compiled_for():
    assert tuple(TARGETS) == ARCHITECTURES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("package", packages_with_kernels())
def test_no_kernel_spills_or_wants_more_shared_memory_than_there_is(
    package, architecture, binaries
):
    chosen = [b for b in binaries if (b.op, b.architecture) == (package, architecture)]
    assert chosen, "no binary was made"
    complaints = [f"{b.kernel} ({b.case}, {b.options}) {b.complaint}" for b in chosen]
    assert not [text for text, b in zip(complaints, chosen, strict=True) if b.complaint]
