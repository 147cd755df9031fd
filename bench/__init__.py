"""Benchmarks of the kernels and of a decoding step: ``python -m bench --help``."""

import os

began: float | None = None
"""Seconds since the epoch at which ``python -m bench`` began: imports alone can take a minute."""

# The profiler that measures memory writes two lines to stderr per use, through the
# progress bar. It reads this once, when torch is first imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
