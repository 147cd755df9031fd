"""One option of a strategy at a time: what each contributes, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

from boe.denoisers.base import Denoiser
from boe.evaluate.ablation_axes import PARTS, Axis, usual_axes
from boe.evaluate.comparison import Comparison, Pair, Summary, row_as_json
from boe.evaluate.record import run_cell
from boe.evaluate.settings import Setting
from boe.evaluate.statistics import holm
from boe.evaluate.stored import with_setting
from boe.evaluate.study import Cell, Group, Study
from boe.samplers import BoE, sampler_from, spec_of, strategy_from
from boe.tasks import Task, TaskItem

SCHEMA = "boe/ablate/1"


RIVAL = "sampler"
RIVALS = ("confidence",)
"""Samplers that are run beside the variants, as in Table 5."""


@dataclass(frozen=True)
class Variant:
    """The base with one thing changed, or a rival (its axis is :data:`RIVAL`).

    Attributes:
        axis, label: what, and to what.
        sampler: its specification; ``None`` if it was refused.
        refused: why there is no such strategy.
    """

    axis: str
    label: str
    sampler: str | None
    refused: str | None = None


@dataclass(frozen=True)
class AblationRow:
    """One variant at one setting, against the base on the same items.

    Attributes:
        summary: ``None`` where the variant was refused.
        pair: variant minus base; ``None`` for the base itself.
        p_holm: the pair's p-value, adjusted by Holm's method over all variants of the
            setting.
    """

    variant: Variant
    summary: Summary | None
    pair: Pair | None
    p_holm: float | None

    @property
    def is_base(self) -> bool:
        return self.summary is not None and self.pair is None


@dataclass(frozen=True)
class Ablation:
    """A base and its variants. ``axes`` gives their titles by name."""

    base: str
    axes: Mapping[str, str]
    study: Study
    environment: Mapping[str, Any]
    denoiser: str | None
    complete: bool
    rows: tuple[AblationRow, ...]

    def as_json(self) -> dict[str, Any]:
        """The documented form (docs/command-line.md)."""
        return {
            "schema": SCHEMA,
            "complete": self.complete,
            "base": self.base,
            "axes": dict(self.axes),
            "study": self.study.as_json(),
            "environment": dict(self.environment),
            "denoiser": self.denoiser,
            "rows": [
                {
                    **asdict(row.variant),
                    "summary": row.summary and row_as_json(row.summary),
                    "against_base": row.pair and row_as_json(row.pair),
                    "p_holm": row.p_holm,
                }
                for row in self.rows
            ],
        }


def variants_of(base: str, axes: Sequence[Axis] | None = None) -> list[Variant]:
    """Rivals, and the base with each value of each axis; impossible ones with the reason.

    Args:
        axes: by default :func:`usual_axes`.

    Raises:
        ValueError: an axis names no option of BoE, or the base has no BoE.
    """
    strategy = strategy_from(base)
    policy = strategy.which
    assert is_dataclass(policy)
    axes = usual_axes(base) if axes is None else axes
    known = {field.name for field in fields(BoE)} if isinstance(policy, BoE) else set()
    variants = [Variant(RIVAL, rival, rival) for rival in RIVALS]
    for axis in axes:
        for label, changes in axis.changes.items():
            parts = {name: value for name, value in changes.items() if name in PARTS}
            options = {name: value for name, value in changes.items() if name not in PARTS}
            unknown = sorted(set(options) - known)
            if unknown:
                raise ValueError(
                    f"of {policy.name} can be varied: {', '.join(sorted(known) or PARTS)}; "
                    f"not {', '.join(unknown)}"
                )
            try:
                which = policy.changed(**options) if isinstance(policy, BoE) else policy
                changed = replace(replace(strategy, which=which), **parts)
            except ValueError as error:
                variants.append(Variant(axis.name, label, None, str(error)))
                continue
            variants.append(Variant(axis.name, label, spec_of(changed)))
    return variants


def tried_out(
    variants: Sequence[Variant],
    denoiser: Denoiser,
    item: TaskItem,
    setting: Setting,
    task: Task | None = None,
) -> list[Variant]:
    """The variants, those refused that cannot decode ``item``.

    Options may not fit a vocabulary or an architecture, which only a decode shows. The
    ``task`` has the rule that some parts need.
    """
    kept = []
    for variant in variants:
        name = variant.sampler
        if name is not None:
            try:
                run_cell(denoiser, [item.canvas], [item.number], Cell(name, setting, 0, name), task)
            except ValueError as error:
                variant = replace(variant, sampler=None, refused=str(error))
        kept.append(variant)
    return kept


def study_of(base: str, variants: Sequence[Variant], study: Study) -> Study:
    """``study`` with the base and all variants in place of its samplers."""
    settings = tuple(dict.fromkeys(setting for g in study.groups for setting in g.settings))
    specs = [spec_of(sampler_from(base)), *(v.sampler for v in variants if v.sampler)]
    return replace(study, groups=(Group(tuple(dict.fromkeys(specs)), settings),))


def ablation_of(
    base: str, axes: Sequence[Axis], variants: Sequence[Variant], comparison: Comparison
) -> Ablation:
    """Rows from the comparison of a base with its variants."""
    spec = spec_of(sampler_from(base))
    rows: list[AblationRow] = []
    settings = list(dict.fromkeys(s.setting for s in comparison.summaries))
    for setting in settings:
        summaries = {s.sampler: s for s in comparison.summaries if s.setting == setting}
        against = _against(spec, setting, comparison.pairs)
        tested = sorted(against)
        adjusted = dict(zip(tested, holm([against[name].p_value for name in tested]), strict=True))
        for variant in variants:
            name = variant.sampler
            if name is None:
                rows.append(AblationRow(variant, None, None, None))
            elif name in summaries:
                rows.append(
                    AblationRow(variant, summaries[name], against.get(name), adjusted.get(name))
                )
    return Ablation(
        base=spec,
        axes={RIVAL: "other samplers", **{axis.name: axis.title for axis in axes}},
        study=comparison.study,
        environment=comparison.environment,
        denoiser=comparison.denoiser,
        complete=comparison.complete,
        rows=tuple(rows),
    )


def _against(base: str, setting: Setting, pairs: Sequence[Pair]) -> dict[str, Pair]:
    """By variant, its pair with the base, turned so that the variant comes first."""
    found = {}
    for pair in pairs:
        if pair.setting == setting and base in (pair.first, pair.second):
            other = pair.second if pair.first == base else pair.first
            found[other] = pair if pair.second == base else pair.swapped()
    return found


def ablation_from_json(content: Mapping[str, Any]) -> Ablation:
    """A stored ablation.

    Raises:
        ValueError: another schema.
    """
    if content.get("schema") != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA}, got {content.get('schema')!r}")
    rows = [
        AblationRow(
            Variant(**{name: row[name] for name in ("axis", "label", "sampler", "refused")}),
            None if row["summary"] is None else Summary(**with_setting(row["summary"])),
            None if row["against_base"] is None else Pair(**with_setting(row["against_base"])),
            row["p_holm"],
        )
        for row in content["rows"]
    ]
    return Ablation(
        base=content["base"],
        axes=content["axes"],
        study=Study.from_json(content["study"]),
        environment=content["environment"],
        denoiser=content["denoiser"],
        complete=content["complete"],
        rows=tuple(rows),
    )
