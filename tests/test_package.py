"""The package as a whole: what it exports, what importing it costs, what it needs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import boe
import boe.denoisers

ROOT = Path(__file__).parents[1]


def test_importing_boe_imports_neither_torch_nor_anything_large() -> None:
    program = (
        "import sys, boe, boe.cli.app\n"
        "print(*[m for m in ('torch', 'transformers', 'triton', 'matplotlib') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == []


def test_the_kernels_and_samplers_do_not_import_transformers() -> None:
    program = (
        "import sys, boe_kernels, boe.samplers, boe.decoding, boe.attention\n"
        "print(*[m for m in ('transformers', 'triton', 'matplotlib') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == []


@pytest.mark.parametrize("name", boe.__all__)
def test_every_public_name_can_be_reached_and_is_listed(name: str) -> None:
    assert getattr(boe, name) is not None
    assert name in dir(boe)


def test_the_modules_that_the_docs_speak_of_come_with_boe() -> None:
    program = (
        "import boe\n"
        "print(boe.samplers.Count.__name__, boe.tasks.TASKS['sums'].name, boe.defaults.SAMPLER)\n"
        "print(*(getattr(boe, name).__name__ for name in boe._MODULES))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    first, second = ran.stdout.splitlines()
    assert first == f"Count sums {boe.defaults.SAMPLER}"
    assert second.split() == [f"boe.{name}" for name in boe._MODULES]
    with pytest.raises(AttributeError, match="module 'boe' has no attribute 'sampler'"):
        boe.sampler  # noqa: B018


@pytest.mark.parametrize("name", boe.denoisers.__all__)
def test_every_public_name_of_the_denoisers_can_be_reached_and_is_listed(name: str) -> None:
    assert getattr(boe.denoisers, name) is not None
    assert name in dir(boe.denoisers)


def test_the_models_own_classes_are_imported_with_the_denoiser_that_needs_them() -> None:
    program = (
        "import sys, boe.denoisers\n"
        "print('transformers' in sys.modules, 'boe.denoisers.dit' in sys.modules)\n"
        "boe.denoisers.DiTDenoiser\n"
        "print('transformers' in sys.modules, 'boe.denoisers.dit' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["False", "False", "False", "True"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'boe\.denoisers' has no attribute 'nothing'"):
        boe.denoisers.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="module 'boe' has no attribute 'nothing'"):
        boe.nothing  # noqa: B018


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = list(project["dependencies"])
    for extra, names in project["optional-dependencies"].items():
        needed += names if extra != "dev" else []
    bounds = {}
    for requirement in map(Requirement, needed):
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        bounds[requirement.name] = Version(bound.version)
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    # The newest that the interpreter of the oldest Triton takes, not the oldest that we do.
    del pinned["numpy"], bounds["numpy"]
    assert {name: Version(version) for name, version in pinned.items()} == bounds
