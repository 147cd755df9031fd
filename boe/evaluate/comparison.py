"""Samplers against each other on the same items: what follows from a run's records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from typing import Any

from boe.evaluate.bootstrap import mean_interval, resampling_weights
from boe.evaluate.equal_cost import Curve, Level, equal_cost
from boe.evaluate.outcomes import Outcome, outcomes_of
from boe.evaluate.record import COSTS, Record, Trace
from boe.evaluate.running import Run
from boe.evaluate.settings import Setting
from boe.evaluate.standing import Standing, standings
from boe.evaluate.statistics import clustered_interval, mcnemar_p_value, sign_flip_p_value
from boe.evaluate.study import Cell, Study
from boe.evaluate.text_quality import TextResults

SCHEMA = "boe/compare/2"
AXES = ("flop_equiv", "seconds")
"""Costs at which samplers are read off to be compared at equal cost."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """One sampler at one setting. All numbers are means per item.

    Attributes:
        curve: what it is a point of.
        interval: 95 %, Wilson's (:func:`boe.evaluate.statistics.clustered_interval`).
        flop_equiv_interval, seconds_interval: 95 %, bootstrap over items.
        metrics: the task's further metrics.
    """

    sampler: str
    curve: str
    setting: Setting
    items: int
    seeds: int
    accuracy: float
    interval: Interval
    steps: float
    nfe_forward: float
    n_backward: float
    flop_equiv: float
    seconds: float
    flop_equiv_interval: Interval
    seconds_interval: Interval
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Pair:
    """Two samplers at one setting on the items that both decoded.

    Attributes:
        only_first, only_second: right answers that the other's answer to the same item with
            the same seed was not.
        p_value: exact and two-sided: McNemar's test with one seed, with several the sign-flip
            test on the numbers of right answers per item, which it is a case of.
        accuracy, flop_equiv, seconds: first minus second, mean per item; the intervals are
            95 %, paired bootstrap over items.
    """

    setting: Setting
    first: str
    second: str
    items: int
    only_first: int
    only_second: int
    p_value: float
    accuracy: float
    accuracy_interval: Interval
    flop_equiv: float
    flop_equiv_interval: Interval
    seconds: float
    seconds_interval: Interval

    def swapped(self) -> Pair:
        """The same comparison, told from the other side."""
        changes: dict[str, Any] = {}
        for name in ("accuracy", "flop_equiv", "seconds"):
            low, high = getattr(self, f"{name}_interval")
            changes[name] = -getattr(self, name)
            changes[f"{name}_interval"] = (-high, -low)
        return replace(
            self,
            first=self.second,
            second=self.first,
            only_first=self.only_second,
            only_second=self.only_first,
            **changes,
        )


@dataclass(frozen=True)
class ResidualCurve:
    """How the uncertainty of the masks falls, step by step.

    Attributes:
        items: over how many items the means are; a finished one keeps its last values.
        entropy: mean Σ H over the masked positions before each step and after the last, nats.
        cost: mean flop_equiv spent until then.
    """

    sampler: str
    setting: Setting
    items: int
    entropy: tuple[float, ...]
    cost: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """A run's results. ``complete`` is False after an interruption.

    Attributes:
        equal_cost: all curves at the costs of each reference's settings, by axis.
        standing: the first reference at its settings, against its rivals.
        records: all of them, or none where they were left out of the file.
        text: measures of all texts together, where the task writes prose.
    """

    study: Study
    environment: Mapping[str, Any]
    denoiser: str | None
    complete: bool
    summaries: tuple[Summary, ...]
    pairs: tuple[Pair, ...]
    equal_cost: tuple[Level, ...]
    standing: tuple[Standing, ...] = ()
    residual: tuple[ResidualCurve, ...] = ()
    records: tuple[Record, ...] = ()
    text: TextResults | None = None

    def as_json(self, records: bool = True) -> dict[str, Any]:
        """The documented form (docs/command-line.md)."""
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "complete": self.complete,
            "study": self.study.as_json(),
            "environment": dict(self.environment),
            "denoiser": self.denoiser,
            "summary": [row_as_json(summary) for summary in self.summaries],
            "pairs": [row_as_json(pair) for pair in self.pairs],
            "equal_cost": [asdict(level) for level in self.equal_cost],
            "standing": [row_as_json(standing) for standing in self.standing],
            "residual_entropy": [row_as_json(curve) for curve in self.residual],
        }
        if self.text is not None:
            content["text"] = self.text.as_json()
        if records:
            content["records"] = [record.as_json() for record in self.records]
        return content


def analyse(run: Run, references: Sequence[str] = ()) -> Comparison:
    """Summaries, paired tests and readings at equal cost of a run.

    Args:
        references: the curves whose costs the others are read off at; by default
            ``confidence``, or the first.
    """
    outcomes = outcomes_of(run.records)
    curves = {(cell.sampler, cell.setting): cell.curve for cell in run.study.cells()}
    named = _curves(outcomes, curves)
    levels: list[Level] = []
    names = [curve.name for curve in named]
    if not references:
        references = ["confidence"] if "confidence" in names else names[:1]
    for axis in AXES:
        for reference in references:
            # An interrupted run may not have come to it.
            if reference in names:
                levels += equal_cost(named, reference, axis)
    standing = []
    if references and references[0] in names:
        standing = standings(named, references[0], _rivals(run.study), AXES)
    return Comparison(
        run.study,
        run.environment,
        run.denoiser,
        run.complete,
        tuple(_summary(outcome, curves) for outcome in outcomes),
        tuple(_pairs(outcomes, run.records)),
        tuple(levels),
        tuple(standing),
        tuple(_residual(run.traces)),
        tuple(run.records),
    )


def curve_name(curve: str, setting: Setting) -> str:
    """A curve's name, with what its settings have in common besides the budget."""
    return ", ".join((curve, *setting.extras()))


def check_references(study: Study, references: Sequence[str]) -> None:
    """Raises ValueError unless all ``references`` are names of the study's curves."""
    curves = [curve_name(cell.curve, cell.setting) for cell in study.cells()]
    for reference in references:
        if reference not in curves:
            raise ValueError(
                f"reference must be one of {'; '.join(dict.fromkeys(curves))}, got {reference!r}"
            )


def _rivals(study: Study) -> set[str]:
    """The names of the curves of groups that are rivals."""
    return {
        curve_name(group.curve or sampler, setting)
        for group in study.groups
        if group.rival
        for sampler in group.samplers
        for setting in group.settings
    }


def _curves(outcomes: Sequence[Outcome], curves: Mapping[tuple[str, Setting], str]) -> list[Curve]:
    points: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        curve = curves[outcome.sampler, outcome.setting]
        points.setdefault(curve_name(curve, outcome.setting), []).append(outcome)
    return [Curve(name, tuple(members)) for name, members in points.items()]


def _summary(outcome: Outcome, curves: Mapping[tuple[str, Setting], str]) -> Summary:
    items = outcome.items
    weights = resampling_weights(len(items))
    return Summary(
        sampler=outcome.sampler,
        curve=curves[outcome.sampler, outcome.setting],
        setting=outcome.setting,
        items=len(items),
        seeds=outcome.seeds,
        accuracy=outcome.mean("accuracy"),
        interval=clustered_interval(outcome.listed("accuracy", items), outcome.seeds),
        steps=outcome.mean("steps"),
        **{cost: outcome.mean(cost) for cost in COSTS},
        flop_equiv_interval=mean_interval(outcome.listed("flop_equiv", items), weights),
        seconds_interval=mean_interval(outcome.listed("seconds", items), weights),
        metrics=outcome.metrics,
    )


def _pairs(outcomes: Sequence[Outcome], records: Sequence[Record]) -> list[Pair]:
    by_setting: dict[Setting, list[Outcome]] = {}
    for outcome in outcomes:
        by_setting.setdefault(outcome.setting, []).append(outcome)
    answers: dict[tuple[str, Setting], dict[tuple[int, int], bool]] = {}
    for record in records:
        of_cell = answers.setdefault((record.sampler, record.setting), {})
        of_cell[record.item, record.seed] = record.correct
    pairs = []
    for setting, members in by_setting.items():
        for first, second in combinations(members, 2):
            shared = sorted(set(first.items) & set(second.items))
            if shared and first.seeds == second.seeds:
                a, b = answers[first.sampler, setting], answers[second.sampler, setting]
                pairs.append(_compare(first, second, shared, a, b))
    return pairs


def _compare(
    first: Outcome,
    second: Outcome,
    items: Sequence[int],
    first_answers: Mapping[tuple[int, int], bool],
    second_answers: Mapping[tuple[int, int], bool],
) -> Pair:
    """The paired comparison of two outcomes on shared ``items``.

    Args:
        first_answers: by item and seed, whether the answer was right; ``second_answers`` too.
    """
    wanted = set(items)
    both = [
        (first_answers[key], second_answers[key])
        for key in first_answers
        if key[0] in wanted and key in second_answers
    ]
    only_first = sum(a and not b for a, b in both)
    only_second = sum(b and not a for a, b in both)
    if first.seeds == 1:
        p_value = mcnemar_p_value(only_first, only_second)
    else:
        p_value = sign_flip_p_value([first.right[k] - second.right[k] for k in items])
    weights = resampling_weights(len(items))
    differences: dict[str, Any] = {}
    for name in ("accuracy", "flop_equiv", "seconds"):
        values = [
            a - b
            for a, b in zip(first.listed(name, items), second.listed(name, items), strict=True)
        ]
        differences[name] = sum(values) / len(values)
        differences[f"{name}_interval"] = mean_interval(values, weights)
    return Pair(
        setting=first.setting,
        first=first.sampler,
        second=second.sampler,
        items=len(items),
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
        **differences,
    )


def _residual(traces: Mapping[Cell, Sequence[Trace]]) -> list[ResidualCurve]:
    groups: dict[tuple[str, Setting], list[Trace]] = {}
    for cell, found in traces.items():
        groups.setdefault((cell.sampler, cell.setting), []).extend(found)
    curves = []
    for (sampler, setting), members in groups.items():
        steps = max(len(member.entropy) for member in members)
        entropy, cost = [0.0] * steps, [0.0] * steps
        for member in members:
            for step in range(steps):
                last = min(step, len(member.entropy) - 1)
                entropy[step] += member.entropy[last]
                cost[step] += member.cost[last]
        count = len(members)
        curves.append(
            ResidualCurve(
                sampler,
                setting,
                count,
                tuple(value / count for value in entropy),
                tuple(value / count for value in cost),
            )
        )
    return curves


def row_as_json(row: Summary | Pair | ResidualCurve | Standing) -> dict[str, Any]:
    """A row with its setting in JSON form."""
    content = {field.name: getattr(row, field.name) for field in fields(row)}
    if isinstance(row, Standing):
        content["best"] = {axis: best and asdict(best) for axis, best in row.best.items()}
    return {**content, "setting": row.setting.as_json()}
