"""The package as a whole: what it exports, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import boe


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


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'boe' has no attribute 'nothing'"):
        boe.nothing  # noqa: B018
