"""What can be seen of the lm-eval model where lm-eval is not installed."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest


def _folder(name: str) -> ModuleSpec:
    """What Python finds for a folder without ``__init__.py``."""
    return ModuleSpec(name, loader=None, origin=None, is_package=True)


@pytest.mark.parametrize("found", [lambda name: None, _folder], ids=["nothing", "folder"])
def test_importing_it_says_what_to_install(
    found: Callable[[str], ModuleSpec | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: found(name) if name == "lm_eval" else find(name, *a),
    )
    for name in [name for name in sys.modules if name.startswith("boe.lm_eval")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"pip install '\.\[lm-eval\]'"):
        importlib.import_module("boe.lm_eval")


def test_nothing_else_imports_it_or_lm_eval() -> None:
    root = Path(__file__).parents[2]
    offenders = []
    for path in [*root.glob("boe/**/*.py"), *root.glob("boe_kernels/**/*.py")]:
        if "lm_eval" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            offenders += [path for name in names if "lm_eval" in name.split(".")]
    assert offenders == []
