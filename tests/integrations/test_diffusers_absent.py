"""Without diffusers, what is missing is said."""

from __future__ import annotations

import subprocess
import sys


def test_without_diffusers_the_extra_is_named() -> None:
    program = (
        "import sys\n"
        "sys.modules['diffusers'] = None\n"
        "try:\n"
        "    import boe.integrations.diffusers\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "needs diffusers: pip install '.[diffusers]' in a checkout" in ran.stdout
