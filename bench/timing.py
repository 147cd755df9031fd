"""Timing of rivals against each other, and the memory that a call takes.

Machines drift: clocks change, other work comes and goes. Rivals are therefore run in
turn, round after round, and a ratio is taken within each round. On a GPU every call
starts with a cold L2 cache and an empty queue, so that its time holds what it takes to
launch; on a CPU, with whatever the call before it left in the cache and in the allocator,
which is why every round has another order. Calls that are launched as CUDA graphs, without
the host between their kernels, are timed by ``bench.gpu.launches``.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from bench.results import Quantiles

Call = Callable[[], object]
Setting = Callable[[], AbstractContextManager[object]]

_FLUSH_BYTES = 256 * 2**20
_BUSY_CYCLES = 2_000_000  # about a millisecond: longer than a host takes to launch any graph
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
    calls: Mapping[str, Call],
    device: torch.device,
    effort: Effort,
    *,
    settings: Mapping[str, Setting] | None = None,
    launching: bool = True,
    warmed: bool = False,
) -> dict[str, Timing]:
    """Time every call once per round, after one untimed round.

    Args:
        settings: what a call is to be run under; entering and leaving it is not timed.
        launching: what a caller waits for: on a GPU a call begins with an empty queue and a
            cold L2 cache, and its time holds what it takes to launch. Otherwise the call is
            queued while the GPU is busy, so that its time is that of its kernels, and finds
            in the cache what the call before it left there.
        warmed: leave the untimed round out: every call has been run already.
    """
    stopwatch = _gpu_stopwatch(device, launching) if device.type == "cuda" else _cpu_stopwatch
    samples: dict[str, list[float]] = {name: [] for name in calls}
    settings = settings or {}
    for name, call in calls.items() if not warmed else ():
        with settings.get(name, nullcontext)():
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
                with settings.get(name, nullcontext)():
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


def _gpu_stopwatch(device: torch.device, launching: bool) -> Callable[[Call], float]:
    flush = torch.empty(_FLUSH_BYTES if launching else 0, dtype=torch.int8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def stopwatch(call: Call) -> float:
        flush.zero_()
        # While the device were busy with this, the host could launch ahead unseen.
        torch.cuda.synchronize(device)
        if not launching:
            torch.cuda._sleep(_BUSY_CYCLES)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return stopwatch
