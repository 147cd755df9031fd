"""Programs that compile kernels need a process in which Triton does not interpret."""

from __future__ import annotations

import os


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for such a program."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**kept, **changes}
