"""What is to be decoded: a task's items, and which samplers with which settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from boe.evaluate.settings import BUDGETS, Setting
from boe.samplers import sampler_from
from boe.tasks import Split
from boe.tasks.splits import check_split


@dataclass(frozen=True)
class Cell:
    """One sampler at one setting with one seed of its random draws.

    Attributes:
        sampler: its specification, as it was given.
        curve: what it is called in plots and readings over several settings.
    """

    sampler: str
    setting: Setting
    seed: int
    curve: str


@dataclass(frozen=True)
class Group:
    """Samplers that are each run at all of some settings.

    Attributes:
        curve: makes all of the group's samplers one curve of this name, whose points differ
            in an option of the sampler's own (such as γ of EB-Sampler); by default every
            sampler is a curve, whose points differ in the budget.
        rival: whether the first reference is held against its curves
            (:mod:`boe.evaluate.standing`).

    Raises:
        ValueError: nothing to run, or a specification that cannot be read.
    """

    samplers: tuple[str, ...]
    settings: tuple[Setting, ...]
    curve: str | None = None
    rival: bool = True

    def __post_init__(self) -> None:
        for name in ("samplers", "settings"):
            if not getattr(self, name):
                raise ValueError(f"{name} must hold at least one, got none")
        if len(set(self.samplers)) < len(self.samplers):
            raise ValueError(f"samplers must be different, got {'; '.join(self.samplers)}")
        if len(set(self.settings)) < len(self.settings):
            raise ValueError(
                f"settings must be different, got {'; '.join(map(str, self.settings))}"
            )
        for spec in self.samplers:
            sampler_from(spec)


@dataclass(frozen=True)
class Study:
    """Samplers and settings on one task's items.

    Attributes:
        task, difficulty: of :data:`boe.tasks.TASKS`.
        items: how many, of the stream that ``item_seed`` and ``split`` fix.
        seeds: of the random draws; every cell is run with each of them.
        batch_size: items decoded together.
        traced: for so many items the remaining entropy after each step is recorded too, in a
            decode of its own, so that the timed one keeps no trajectory.
        timings: how often every decode is run. Its seconds are their median; the rest is that
            of the first.

    Raises:
        ValueError: numbers out of range, or the same cell twice.
    """

    task: str
    difficulty: str
    groups: tuple[Group, ...]
    items: int = 100
    item_seed: int = 0
    split: Split = "test"
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 50
    traced: int = 0
    timings: int = 1

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("groups must hold at least one, got none")
        check_split(self.split)
        for name, least in (("items", 1), ("batch_size", 1), ("traced", 0), ("timings", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.traced > self.items:
            raise ValueError(
                f"traced must be at most the number of items, {self.items}, got {self.traced}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different numbers, at least one, got {self.seeds}")
        seen = set()
        for cell in self.cells():
            if (cell.sampler, cell.setting, cell.seed) in seen:
                raise ValueError(f"{cell.sampler} at {cell.setting} stands in two groups")
            seen.add((cell.sampler, cell.setting, cell.seed))

    def cells(self) -> Iterator[Cell]:
        """Setting by setting, sampler by sampler, seed by seed."""
        for group in self.groups:
            for setting, sampler, seed in product(group.settings, group.samplers, self.seeds):
                yield Cell(sampler, setting, seed, group.curve or sampler)

    @property
    def decodes(self) -> int:
        """How many items are decoded, by all cells together."""
        return len(list(self.cells())) * (self.items * self.timings + self.traced)

    def as_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "difficulty": self.difficulty,
            "split": self.split,
            "items": self.items,
            "item_seed": self.item_seed,
            "seeds": list(self.seeds),
            "batch_size": self.batch_size,
            "traced": self.traced,
            "timings": self.timings,
            "groups": [
                {
                    "samplers": list(group.samplers),
                    "settings": [setting.as_json() for setting in group.settings],
                    **({} if group.curve is None else {"curve": group.curve}),
                    **({} if group.rival else {"rival": False}),
                }
                for group in self.groups
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Study:
        """The study that :meth:`as_json` wrote."""
        groups = tuple(
            Group(
                tuple(group["samplers"]),
                tuple(Setting.from_json(setting) for setting in group["settings"]),
                group.get("curve"),
                group.get("rival", True),
            )
            for group in content["groups"]
        )
        rest = {name: value for name, value in content.items() if name != "groups"}
        return cls(**{**rest, "groups": groups, "seeds": tuple(content["seeds"])})


_SWEPT = ("block_length", "temperature", "top_p", "guidance")


def settings_of(options: Mapping[str, Any]) -> tuple[Setting, ...]:
    """All combinations of the values given for a setting's fields, budget by budget.

    Args:
        options: by field a value or a list of values; one token per step if no budget is
            given. The values of several budgets are not combined with each other.

    Raises:
        ValueError: an unknown field, or a value that does not fit.
    """
    for name in options:
        if name not in (*BUDGETS, *_SWEPT):
            raise ValueError(f"a setting has {', '.join((*BUDGETS, *_SWEPT))}, got {name!r}")
    swept = {name: _listed(options[name]) for name in options}
    budgets = [{name: value} for name in BUDGETS for value in swept.get(name, [])]
    rest = [name for name in _SWEPT if name in swept]
    found = []
    for budget in budgets or [{"tokens_per_step": 1}]:
        for values in product(*(swept[name] for name in rest)):
            found.append(Setting(**{**budget, **dict(zip(rest, values, strict=True))}))
    return tuple(found)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
