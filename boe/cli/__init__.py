"""The ``boe`` command."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line; errors are one line on standard error and a non-zero exit."""
    try:
        from boe.cli.app import app

        app()
    except (ValueError, TypeError, OSError, RuntimeError, ModuleNotFoundError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"boe: {message}", file=sys.stderr)
        raise SystemExit(1) from None
    except (KeyboardInterrupt, SystemExit) as stop:
        # Typer turns Ctrl-C into this exit status without a word.
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        print("boe: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
