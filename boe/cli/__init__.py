"""The ``boe`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; errors are one line on standard error and a non-zero exit."""
    from boe.cli.app import app

    try:
        app()
    except KeyboardInterrupt:
        print("boe: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, TypeError, OSError, RuntimeError, ModuleNotFoundError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"boe: {message}", file=sys.stderr)
        raise SystemExit(1) from None
