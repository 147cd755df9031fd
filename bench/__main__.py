"""``python -m bench NAME``: attention, entropy, step, decodes, llm_step, llm_memory, gpu,
resources, tune, plot, readme or all.

Options after the name go to the benchmark; see ``python -m bench attention --help``.
``all``, the default, means the first four. ``llm_step`` is a step at the shapes of LLaDA-8B
and Dream-7B (a toy width without a GPU); ``llm_memory`` counts what such a step holds, and
needs no GPU. ``gpu`` is everything that a GPU can tell, tests and such steps included.
``resources`` measures nothing: it compiles the Triton kernels and prints what their binaries
need. ``tune`` times tiles of the kernels with products on a GPU and writes the quickest into their
tables. ``plot`` draws what is committed, ``readme`` fills the tables of README.md and of
docs/benchmarks.md from it.
"""

from __future__ import annotations

import importlib
import sys
import time

import bench

BENCHMARKS = ("attention", "entropy", "step", "decodes")
NOT_IN_ALL = ("llm_step", "llm_memory", "gpu", "resources", "tune", "plot", "readme")


def main(argv: list[str]) -> None:
    """Run the named benchmark, or each in turn."""
    named = bool(argv) and not argv[0].startswith("-")
    name, options = (argv[0], argv[1:]) if named else ("all", argv)
    choices = (*BENCHMARKS, *NOT_IN_ALL, "all")
    if name not in choices:
        raise SystemExit(f"unknown benchmark {name!r}: choose one of {', '.join(choices)}")
    if name == "all" and {"-h", "--help"} & set(options):
        print(__doc__)
        return
    failed = 0
    for benchmark in BENCHMARKS if name == "all" else (name,):
        # Imported only when its turn comes: a benchmark may need what others do not.
        module = importlib.import_module(f"bench.{benchmark}")
        try:
            module.main(options)
        except SystemExit as stop:
            # 1 tells that some cases were refused; the next benchmark can still run.
            if stop.code != 1:
                raise
            failed = 1
    if failed:
        raise SystemExit(failed)


if __name__ == "__main__":
    bench.began = time.time()
    main(sys.argv[1:])
