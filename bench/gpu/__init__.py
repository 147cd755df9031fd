"""Proof on a GPU, in one command: ``python -m bench gpu``.

Runs the tests of ``tests/gpu``, the sanitizer, and the benchmarks of every op, the most
important first, and writes one CSV file and one Markdown summary per device. See
``docs/benchmarks.md``.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Run what the command line asks for."""
    # Imported here: pytest loads a plugin of this package into processes that need no more.
    from bench.gpu.run import main as run

    run(argv)
