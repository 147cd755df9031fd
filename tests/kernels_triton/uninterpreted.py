"""Programs that compile kernels need a process in which Triton does not interpret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for such a program."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**kept, **changes}


def told_by(script: str, *arguments: str) -> Any:
    """What the ``script`` of this folder prints with these arguments, as JSON."""
    return _told_by([str(Path(__file__).with_name(script)), *arguments])


def told_by_code(code: str, *arguments: str) -> Any:
    """What ``code`` prints with these arguments, as JSON."""
    return _told_by(["-c", code, *arguments])


def _told_by(arguments: list[str]) -> Any:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env=environment(PYTHONPATH=str(root)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
