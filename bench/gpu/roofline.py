"""What the device can do at most, measured in the same run, and what a task needs at least.

A task's *floor* is the longer of two times: its fewest bytes (every input read once, every
output written once) at the speed of a large copy, and its operations at the speed of a large
matrix product of its dtype. No implementation can be much faster from a cold cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from bench.results import Measurement, Quantiles
from bench.timing import Effort, interleave

NAME = "roofline"
_EFFORT = Effort(seconds=1.0, least_rounds=5, most_rounds=20)

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Ceilings:
    """The device's own limits."""

    bandwidth: float
    """Bytes per second, read and written together."""
    arithmetic: dict[torch.dtype, float]
    """Floating-point operations per second of a matrix product."""

    def floor(self, work: Work) -> float:
        """The least milliseconds that ``work`` can take."""
        return 1e3 * max(work.bytes / self.bandwidth, work.operations / self.arithmetic[work.dtype])


@dataclass(frozen=True)
class Work:
    """What a task has to do however it is done."""

    bytes: int
    operations: int
    dtype: torch.dtype


def measure_ceilings(device: torch.device, toy: bool) -> tuple[Ceilings, list[Measurement]]:
    """A large device-to-device copy, and a large matrix product of random data per dtype."""
    size, width = (1 << 22, 256) if toy else (1 << 30, 8192)
    source = torch.randint(-128, 128, (size,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    timing = interleave({"copy": partial(target.copy_, source)}, device, _EFFORT, launching=False)
    taken = timing["copy"].quantiles
    bandwidth = 2 * size / (1e-3 * taken.p50)
    measured = [
        Measurement(
            NAME, "copy", "copy", "int8", {"bytes": size}, "gb_per_s", _rate(2e-9 * size, taken)
        )
    ]
    del source, target
    arithmetic = {}
    for dtype in DTYPES:
        # In float32 the units for it are much slower.
        n = width if dtype != torch.float32 else width // 2
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        timing = interleave(
            {"matmul": partial(torch.matmul, a, b)}, device, _EFFORT, launching=False
        )
        taken = timing["matmul"].quantiles
        operations = 2 * n**3
        arithmetic[dtype] = operations / (1e-3 * taken.p50)
        name = str(dtype).removeprefix("torch.")
        rate = _rate(1e-12 * operations, taken)
        measured.append(Measurement(NAME, "matmul", "matmul", name, {"n": n}, "tflops", rate))
    return Ceilings(bandwidth, arithmetic), measured


def _rate(amount: float, milliseconds: Quantiles) -> Quantiles:
    seconds = [1e-3 * value for value in (milliseconds.p50, milliseconds.p80, milliseconds.p20)]
    return Quantiles(*(amount / value for value in seconds))


def ceilings_of(measurements: Iterator[Measurement]) -> dict[str, float]:
    """Stored ceilings in words, for reports."""
    found = {}
    for m in measurements:
        if m.benchmark == NAME and m.value is not None:
            what = "copy, read and written" if m.metric == "gb_per_s" else f"{m.dtype} product"
            unit = "GB/s" if m.metric == "gb_per_s" else "TFLOP/s"
            found[f"{what} ({unit})"] = m.value.p50
    return found
