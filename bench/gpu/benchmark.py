"""What the benchmarks of the GPU run have in common: cases, the machine, and their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bench.gpu.launches import LAUNCHES, Contestant, Launched, time_launches
from bench.gpu.roofline import Ceilings
from bench.results import Config, Measurement, Quantiles
from bench.timing import Effort

OURS = "ours"
FLOOR = "roofline"
"""The provider whose times are floors (``bench.gpu.roofline``)."""


class Case(Protocol):
    """One shape and dtype; its ``str`` stands in the progress line."""

    @property
    def dtype_name(self) -> str: ...

    @property
    def config(self) -> Config: ...


@dataclass(frozen=True)
class Machine:
    """What a case is measured on, and how long."""

    device: torch.device
    ceilings: Ceilings
    toy: bool

    def effort(self, contestants: int) -> Effort:
        """Some 40 ms of samples for each contestant."""
        if self.toy:
            return Effort(seconds=0.01, least_rounds=1, most_rounds=1)
        return Effort(seconds=0.04 * contestants, least_rounds=7, most_rounds=50)


@dataclass(frozen=True)
class Benchmark:
    """A family of cases.

    Attributes:
        name: as in the column ``benchmark``.
        measure: what is measured of a case.
        aims, sweep: its cases, those that the aims need and the others. Given a flag, they
            are toys, which a CPU can run.
        sources: files and folders below the repository whose change makes results stale.
        tests: files of tests that must have passed before anything is timed.
        limit: seconds after which a case is given up.
        needs: seconds that must be left of a run for a case to be begun.
        release: frees what its cases share, when those of another benchmark follow.
    """

    name: str
    measure: Callable[[Any, Machine], Iterator[Measurement]]
    aims: Callable[[bool], Sequence[Case]]
    sweep: Callable[[bool], Sequence[Case]]
    sources: tuple[str, ...]
    tests: tuple[str, ...]
    limit: float = 240.0
    needs: float = 0.0
    release: Callable[[], None] | None = None


@dataclass(frozen=True)
class Task:
    """What the contestants are to do, e.g. a backward.

    Attributes:
        mode: as in the column ``mode``, less how the call is launched.
        floor: the least milliseconds that it can take.
        touched, held: see :func:`bench.gpu.launches.time_launches`.
    """

    mode: str
    floor: float
    touched: int
    held: int


def time_task(
    benchmark: str,
    case: Case,
    task: Task,
    contestants: Mapping[str, Contestant[Any]],
    draw: Callable[[], Any],
    machine: Machine,
    *,
    excluded: Mapping[str, str],
    with_ratios: bool,
) -> Iterator[Measurement]:
    """The rows of one task: times and floors, and what was not timed and why.

    Args:
        excluded: contestants that have already failed, and why.
        with_ratios: also how many times longer each rival took than ours, round by round.
    """
    entered = {name: each for name, each in contestants.items() if name not in excluded}
    launched = time_launches(
        entered,
        draw,
        machine.device,
        machine.effort(len(entered)),
        touched=task.touched,
        held=task.held,
    )
    for launch in LAUNCHES:
        mode = f"{task.mode}, {launch}"
        yield from _rows(benchmark, case, mode, launch, task.floor, launched, excluded, with_ratios)


def _rows(
    benchmark: str,
    case: Case,
    mode: str,
    launch: str,
    floor: float,
    launched: Launched,
    excluded: Mapping[str, str],
    with_ratios: bool,
) -> Iterator[Measurement]:
    def row(provider: str, metric: str, value: Quantiles | None, note: str = "") -> Measurement:
        return Measurement(
            benchmark, provider, mode, case.dtype_name, case.config, metric, value, note
        )

    timings = launched.timings[launch]
    for provider, timing in timings.items():
        yield row(provider, "time_ms", timing.quantiles)
    for provider, why in {**excluded, **launched.failures[launch]}.items():
        yield row(provider, "time_ms", None, why)
    yield row(FLOOR, "time_ms", Quantiles.of([floor]))
    if not with_ratios or OURS not in timings:
        return
    ours = timings[OURS]
    for provider, timing in timings.items():
        if provider != OURS:
            yield row(f"{provider}/{OURS}", "ratio", timing.over(ours))
    share = Quantiles.of([floor / sample for sample in ours.samples])
    yield row(f"{FLOOR}/{OURS}", "ratio", share)
