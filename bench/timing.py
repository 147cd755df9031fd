"""Timing of rivals against each other, and the memory that a call takes.

Machines drift: clocks change, other work comes and goes. Rivals are therefore run in
turn, round after round, and a ratio is taken within each round. On a GPU every call
starts with a cold L2 cache; on a CPU, with whatever the call before it left in the cache
and in the allocator, which is why every round has another order.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from bench.results import Quantiles

Call = Callable[[], object]

_FLUSH_BYTES = 256 * 2**20
_MIB = 2**20


@dataclass(frozen=True)
class Effort:
    """How long to measure the rivals of one case."""

    seconds: float
    """Stop after the round in which this has passed ..."""
    least_rounds: int
    """... but not before this many rounds ..."""
    most_rounds: int
    """... and after this many in any case."""


@dataclass(frozen=True)
class Timing:
    """The milliseconds of one rival, round by round."""

    samples: tuple[float, ...]

    @property
    def quantiles(self) -> Quantiles:
        return Quantiles.of(self.samples)

    @property
    def minimum(self) -> float:
        return min(self.samples)

    def over(self, other: Timing) -> Quantiles:
        """How many times longer than ``other``, round by round of the same run."""
        pairs = zip(self.samples, other.samples, strict=True)
        return Quantiles.of([mine / theirs for mine, theirs in pairs])


def interleave(
    calls: Mapping[str, Call], device: torch.device, effort: Effort
) -> dict[str, Timing]:
    """Time every call once per round, after one untimed round."""
    stopwatch = _gpu_stopwatch(device) if device.type == "cuda" else _cpu_stopwatch
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    gc.collect()
    gc.disable()
    try:
        # Not rotated: a call would always follow the same one.
        order = random.Random(0)
        began = time.perf_counter()
        for number in range(effort.most_rounds):
            late = time.perf_counter() - began > effort.seconds
            if late and number >= effort.least_rounds:
                break
            for name in order.sample(list(calls), len(calls)):
                samples[name].append(stopwatch(calls[name]))
    finally:
        gc.enable()
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def peak_extra_memory(call: Call, device: torch.device) -> float:
    """The most MiB that ``call`` holds at once beyond what was held before it.

    Its results count. On the CPU this adds up what passes through PyTorch's allocator,
    so it sees tensors and the scratch space inside PyTorch's kernels, and does not see
    what oneDNN, MKL or the threads' stacks take from malloc themselves.
    """
    call()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / _MIB
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        # Held until the recording ends, so that the results are not freed within it.
        result = call()
    del result
    assert recording.profiler is not None
    events = [
        event for event in recording.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / _MIB


def _cpu_stopwatch(call: Call) -> float:
    began = time.perf_counter()
    result = call()
    taken = time.perf_counter() - began
    # Freeing the result is not part of the call.
    del result
    return taken * 1e3


def _gpu_stopwatch(device: torch.device) -> Callable[[Call], float]:
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def stopwatch(call: Call) -> float:
        flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return stopwatch
