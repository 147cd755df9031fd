"""Where benchmarks print."""

from __future__ import annotations

from rich.console import Console


def console() -> Console:
    """Standard output, wide enough for the tables where it is not a terminal."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=140)
