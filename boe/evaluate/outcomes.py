"""Records put together: one outcome per sampler and setting, averaged over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from boe.evaluate.record import COSTS, Record
from boe.evaluate.settings import Setting


@dataclass(frozen=True)
class Outcome:
    """How one sampler did at one setting.

    Attributes:
        seeds: how many random draws each item got.
        right: per item number, how many of the draws were right.
        values: per cost, ``steps`` and ``accuracy``, per item number its mean over the draws.
        metrics: the mean of each further metric over items and draws.
    """

    sampler: str
    setting: Setting
    seeds: int
    right: Mapping[int, int]
    values: Mapping[str, Mapping[int, float]]
    metrics: Mapping[str, float]

    @property
    def items(self) -> tuple[int, ...]:
        return tuple(self.right)

    def mean(self, name: str, items: Iterable[int] | None = None) -> float:
        """The mean of a value over some items, by default all."""
        values = self.values[name]
        chosen = [values[item] for item in (values if items is None else items)]
        return sum(chosen) / len(chosen)

    def listed(self, name: str, items: Iterable[int]) -> list[float]:
        """A value of some items, in their order."""
        return [self.values[name][item] for item in items]


def outcomes_of(records: Iterable[Record]) -> list[Outcome]:
    """An outcome per sampler and setting, in order of appearance.

    Items that not all seeds have got to, in an interrupted run, are left out where there are
    others, so that every item of an outcome counts alike.
    """
    groups: dict[tuple[str, Setting], dict[int, list[Record]]] = {}
    for record in records:
        of_cell = groups.setdefault((record.sampler, record.setting), {})
        of_cell.setdefault(record.item, []).append(record)
    found = []
    for (sampler, setting), by_item in groups.items():
        seeds = max(len(group) for group in by_item.values())
        whole = {item: group for item, group in by_item.items() if len(group) == seeds}
        values: dict[str, dict[int, float]] = {
            "accuracy": {k: _mean([r.correct for r in group]) for k, group in whole.items()}
        }
        for name in ("steps", *COSTS):
            values[name] = {
                k: _mean([getattr(r, name) for r in group]) for k, group in whole.items()
            }
        right = {item: sum(r.correct for r in group) for item, group in whole.items()}
        found.append(Outcome(sampler, setting, seeds, right, values, _metrics(whole.values())))
    return found


def _metrics(groups: Iterable[list[Record]]) -> dict[str, float]:
    gathered: dict[str, list[float]] = {}
    for record in chain.from_iterable(groups):
        for name, value in record.metrics.items():
            gathered.setdefault(name, []).append(value)
    return {name: _mean(values) for name, values in gathered.items()}


def _mean(values: list[float] | list[int] | list[bool]) -> float:
    return sum(values) / len(values)
