"""Calls timed as they are launched from Python, and replayed as CUDA graphs.

*eager*: the queue is empty and the L2 cache cold when the call begins, so its time holds
what Python and the launches take.

*graphed*: the call is captured once for each of several sets of inputs, one after the other
in one graph, and a sample is a replay's time over the number of sets. Nothing is left of
the launches but the gaps between kernels. There are so many sets that by the time one comes
round again the L2 cache has been overwritten several times; results are kept, so that no
set finds the memory of another's in the cache. Quantiles are over replays.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from bench.session import WrongResultError
from bench.timing import Call, Effort, Setting, Timing, interleave

LAUNCHES = ("eager", "graphed")

# A replay of n sets touches n times what one does; so many L2 caches of it pass before a
# set is touched again.
_CACHES = 3
_MOST_SETS = 48
_MOST_BYTES = 24 << 30
_WARM_UPS = 2

Inputs = TypeVar("Inputs")


class FatalDeviceError(Exception):
    """The device does not answer this process any more."""


@dataclass(frozen=True)
class Contestant(Generic[Inputs]):
    """Something to be timed.

    Attributes:
        bind: from a set of inputs to the call, which may prepare what is not to be timed.
        setting: what binding and calling happen under.
    """

    bind: Callable[[Inputs], Call]
    setting: Setting


@dataclass
class Launched:
    """Times by contestant and launch, and why there are none."""

    timings: dict[str, dict[str, Timing]] = field(
        default_factory=lambda: {launch: {} for launch in LAUNCHES}
    )
    failures: dict[str, dict[str, str]] = field(
        default_factory=lambda: {launch: {} for launch in LAUNCHES}
    )


def time_launches(
    contestants: Mapping[str, Contestant[Inputs]],
    draw: Callable[[], Inputs],
    device: torch.device,
    effort: Effort,
    *,
    touched: int,
    held: int,
) -> Launched:
    """Time every contestant in both ways, each against the others in turn.

    A contestant that fails is left out and its reason kept.

    Args:
        draw: a fresh set of inputs.
        touched: bytes that a call reads and writes at least.
        held: bytes that a set of inputs and its results take.

    Raises:
        FatalDeviceError: a failure has taken the device away from this process.
    """
    found = Launched()
    settings = {name: each.setting for name, each in contestants.items()}
    calls: dict[str, Call] = {}
    inputs = draw()
    for name, each in contestants.items():
        try:
            with each.setting():
                calls[name] = each.bind(inputs)
                calls[name]()
        except Exception as error:
            calls.pop(name, None)
            found.failures["eager"][name] = reason(error, device)
    found.timings["eager"] = interleave(calls, device, effort, settings=settings)
    names = list(calls)
    del calls, inputs
    if device.type != "cuda":
        found.failures["graphed"] = dict.fromkeys(contestants, "CUDA graphs need a GPU")
        return found
    found.failures["graphed"] = dict(found.failures["eager"])
    count = number_of_sets(touched, held * max(1, len(names)), device)
    # Autograd goes back to the stream of the forward: all must happen on the captured one.
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        sets = [draw() for _ in range(count)]
    replays: dict[str, Call] = {}
    graphs = []
    for name in names:
        try:
            graph, results = _capture(contestants[name], sets, stream)
        except Exception as error:
            found.failures["graphed"][name] = reason(error, device)
            continue
        graphs.append((graph, results))
        replays[name] = graph.replay
    timings = interleave(replays, device, effort, launching=False)
    found.timings["graphed"] = {
        name: Timing(tuple(sample / count for sample in timing.samples))
        for name, timing in timings.items()
    }
    del replays
    for graph, _ in graphs:
        graph.reset()
    del graphs, sets
    gc.collect()
    torch.cuda.empty_cache()
    return found


def number_of_sets(touched: int, held: int, device: torch.device) -> int:
    """How many sets of inputs make a graph whose every call finds a cold cache."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    wanted = -(-_CACHES * cache // max(1, touched)) + 1
    return max(2, min(wanted, _MOST_SETS, _MOST_BYTES // max(1, held)))


def _capture(
    contestant: Contestant[Inputs], sets: list[Inputs], stream: torch.cuda.Stream
) -> tuple[torch.cuda.CUDAGraph, list[object]]:
    with torch.cuda.stream(stream), contestant.setting():
        calls = [contestant.bind(inputs) for inputs in sets]
        for _ in range(_WARM_UPS):
            for call in calls:
                call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with contestant.setting(), torch.cuda.graph(graph, stream=stream):
        results = [call() for call in calls]
    # What the calls prepared must outlive the graph, which reads it.
    return graph, [calls, results]


def reason(error: Exception, device: torch.device) -> str:
    """An error in one line.

    Raises:
        FatalDeviceError: it has taken the device away from this process.
    """
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else ''}".strip().removesuffix(":")
    if isinstance(error, WrongResultError):
        text = f"wrong result: {lines[0]}"
    if isinstance(error, torch.OutOfMemoryError):
        gc.collect()
        torch.cuda.empty_cache()
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except Exception as lost:
            raise FatalDeviceError(text) from lost
    return text[:300]
