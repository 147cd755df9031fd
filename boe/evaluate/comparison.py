"""Samplers against each other on the same items."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from boe.denoisers.base import Denoiser
from boe.evaluate.record import Record, evaluate
from boe.evaluate.statistics import mcnemar_p_value, wilson_interval
from boe.tasks.base import Task, TaskItem

SCHEMA = "boe/compare/1"
COSTS = ("nfe_forward", "n_backward", "flop_equiv", "seconds")


@dataclass(frozen=True)
class Summary:
    """One sampler at one setting. Costs are means per item; the interval is Wilson's, 95 %."""

    sampler: str
    tokens_per_step: int
    items: int
    accuracy: float
    interval: tuple[float, float]
    nfe_forward: float
    n_backward: float
    flop_equiv: float
    seconds: float


@dataclass(frozen=True)
class Pair:
    """Two samplers at one setting on the items that both decoded; exact McNemar test."""

    tokens_per_step: int
    first: str
    second: str
    only_first: int
    only_second: int
    p_value: float


@dataclass
class Comparison:
    """All records, and what follows from them.

    ``complete`` is False after an interruption; the records until then are all there.
    """

    settings: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    complete: bool = False

    def summaries(self) -> list[Summary]:
        groups: dict[tuple[str, int], list[Record]] = {}
        for record in self.records:
            groups.setdefault((record.sampler, record.tokens_per_step), []).append(record)
        return [
            Summary(
                sampler,
                tokens,
                len(group),
                sum(r.correct for r in group) / len(group),
                wilson_interval(sum(r.correct for r in group), len(group)),
                *(sum(getattr(r, cost) for r in group) / len(group) for cost in COSTS),
            )
            for (sampler, tokens), group in groups.items()
        ]

    def pairs(self) -> list[Pair]:
        solved: dict[int, dict[str, dict[int, bool]]] = {}
        for record in self.records:
            of_setting = solved.setdefault(record.tokens_per_step, {})
            of_setting.setdefault(record.sampler, {})[record.item] = record.correct
        pairs = []
        for tokens, samplers in solved.items():
            for first, second in combinations(samplers, 2):
                a, b = samplers[first], samplers[second]
                shared = a.keys() & b.keys()
                only_first = sum(a[item] and not b[item] for item in shared)
                only_second = sum(b[item] and not a[item] for item in shared)
                p_value = mcnemar_p_value(only_first, only_second)
                pairs.append(Pair(tokens, first, second, only_first, only_second, p_value))
        return pairs

    def as_json(self) -> dict[str, Any]:
        """The documented form (docs/command-line.md)."""
        return {
            "schema": SCHEMA,
            "complete": self.complete,
            "settings": self.settings,
            "environment": environment(),
            "summary": [asdict(summary) for summary in self.summaries()],
            "pairs": [asdict(pair) for pair in self.pairs()],
            "records": [asdict(record) for record in self.records],
        }


def compare(
    denoiser: Denoiser,
    task: Task,
    items: list[TaskItem],
    samplers: list[str],
    tokens_per_step: list[int],
    *,
    seed: int = 0,
    temperature: float = 0.0,
    batch_size: int = 32,
    settings: dict[str, Any] | None = None,
    on_record: Callable[[Record], None] = lambda record: None,
) -> Comparison:
    """Every sampler at every setting on the same items.

    Ctrl-C ends the comparison early and returns what is done.
    """
    comparison = Comparison({} if settings is None else settings)
    try:
        for tokens in tokens_per_step:
            for sampler in samplers:
                for record in evaluate(
                    denoiser,
                    task,
                    items,
                    sampler,
                    tokens,
                    seed=seed,
                    temperature=temperature,
                    batch_size=batch_size,
                ):
                    comparison.records.append(record)
                    on_record(record)
    except KeyboardInterrupt:
        return comparison
    comparison.complete = True
    return comparison


def environment() -> dict[str, Any]:
    """Hardware and versions that a result was produced with."""
    return {
        "hardware": hardware_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def hardware_name() -> str:
    """The GPU's name, or the processor's."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()


def processor_name() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
