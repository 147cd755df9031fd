"""Results as tables, for Markdown, CSV and the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from boe.evaluate.ablation import Ablation
from boe.evaluate.comparison import AXES, Comparison, Summary, curve_name
from boe.evaluate.record import COSTS, Record
from boe.evaluate.settings import Setting
from boe.evaluate.text_quality import TextQuality

COST_NAMES = {
    "nfe_forward": "forwards",
    "n_backward": "backwards",
    "flop_equiv": "cost in forwards",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Table:
    """Cells as text. The first ``labels`` columns are words, the others numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1

    def as_markdown(self) -> str:
        """A Markdown table; pipes in cells are escaped."""
        rule = [":---" if k < self.labels else "---:" for k in range(len(self.columns))]
        lines = [self.columns, tuple(rule), *self.rows]
        return "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )


def summary_table(comparison: Comparison) -> Table:
    """Accuracy and every cost, a row per sampler and setting; the best of a setting in bold."""
    metrics = list(dict.fromkeys(name for s in comparison.summaries for name in s.metrics))
    best = _best_by_setting(comparison.summaries)
    rows = []
    for summary in comparison.summaries:
        share = percent(summary.accuracy)
        rows.append(
            (
                str(summary.setting),
                code(summary.sampler),
                f"**{share}**" if summary.accuracy == best[summary.setting] else share,
                span(summary.interval),
                *(percent(summary.metrics[name]) for name in metrics),
                f"{summary.nfe_forward:.1f}",
                f"{summary.n_backward:.1f}",
                f"{summary.flop_equiv:.1f}",
                f"{summary.seconds:.3f}",
            )
        )
    columns = ("setting", "sampler", "right", "95 %", *metrics)
    return Table((*columns, "forwards", "backwards", "cost", "seconds"), tuple(rows), labels=2)


def pivot_table(comparison: Comparison) -> Table:
    """Accuracy and cost in forwards, a row per setting and a column per sampler."""
    cells = {(s.setting, s.sampler): s for s in comparison.summaries}
    settings = dict.fromkeys(s.setting for s in comparison.summaries)
    samplers = tuple(dict.fromkeys(s.sampler for s in comparison.summaries))
    best = _best_by_setting(comparison.summaries)

    def cell(setting: Setting, sampler: str) -> str:
        found = cells.get((setting, sampler))
        if found is None:
            return "–"
        share = percent(found.accuracy)
        mark = f"**{share}**" if found.accuracy == best[setting] else share
        return f"{mark}, {found.flop_equiv:.0f}"

    rows = tuple(
        (str(setting), *(cell(setting, name) for name in samplers)) for setting in settings
    )
    return Table(("setting", *map(code, samplers)), rows)


def pairs_table(comparison: Comparison, against: Sequence[str] = ()) -> Table:
    """Paired tests, a row per setting and pair.

    Args:
        against: show only pairs in which exactly one is of these samplers; all by default.
    """
    rows = []
    for pair in comparison.pairs:
        if against and (pair.first in against) == (pair.second in against):
            continue
        if pair.second in against:
            pair = pair.swapped()
        rows.append(
            (
                str(pair.setting),
                code(pair.first),
                code(pair.second),
                str(pair.only_first),
                str(pair.only_second),
                p_text(pair.p_value),
                points_between(pair.accuracy, pair.accuracy_interval),
                signed_between(pair.flop_equiv, pair.flop_equiv_interval),
            )
        )
    columns = ("setting", "first", "second", "only first", "only second", "p", "points", "cost")
    return Table(columns, tuple(rows), labels=3)


def equal_cost_table(comparison: Comparison, axis: str = "flop_equiv") -> Table:
    """Accuracy of every curve at equal cost, a row per cost; differences to the reference."""
    levels = [level for level in comparison.equal_cost if level.axis == axis]
    names = [reading.curve for reading in levels[0].readings] if levels else []
    rows = []
    for level in levels:
        best = max(r.accuracy for r in level.readings if r.accuracy is not None)
        cells = []
        for reading in level.readings:
            if reading.accuracy is None:
                cells.append("–")
                continue
            text = percent(reading.accuracy)
            text = f"**{text}**" if reading.accuracy == best else text
            if reading.kind == "dearest":
                text += "*"
            if reading.difference is not None and reading.difference_interval is not None:
                text += f" ({points_between(reading.difference, reading.difference_interval)})"
            cells.append(text)
        unit = f"{level.cost:.1f}" if axis != "seconds" else f"{level.cost:.3f}"
        rows.append((f"{unit} ({level.origin})", *cells))
    return Table((COST_NAMES[axis], *map(code, names)), tuple(rows))


def standing_table(comparisons: Sequence[Comparison]) -> Table:
    """The first reference of each comparison at its settings, against the best of its rivals."""
    rows = []
    for comparison in comparisons:
        for standing in comparison.standing:
            cells = []
            for axis, digits in zip(AXES, (1, 3), strict=True):
                best = standing.best[axis]
                cells.append(f"{standing.costs[axis]:.{digits}f}")
                if best is None:
                    cells += ["none so cheap", "–", "–"]
                    continue
                cells += [
                    " = ".join(map(code, best.names)),
                    percent(best.accuracy),
                    points_between(best.ahead, best.interval),
                ]
            task, setting = code(comparison.study.task), str(standing.setting)
            rows.append((task, setting, percent(standing.accuracy), *cells))
    columns = ["task", "setting", "right"]
    for axis in AXES:
        columns += [COST_NAMES[axis], "best rival for that", "right", "points ahead"]
    return Table(tuple(columns), tuple(rows), labels=2)


def text_table(comparison: Comparison) -> Table:
    """The measures of what was written, a row per sampler and setting, real text first.

    Cost is the mean per text, in forwards.

    Raises:
        ValueError: no texts were measured.
    """
    results = comparison.text
    if results is None:
        raise ValueError(f"task {comparison.study.task} writes no prose that could be measured")
    costs = {(s.sampler, s.setting): s.flop_equiv for s in comparison.summaries}
    rows = [("real text", "", "–", *_text_cells(results.real))]
    rows += [
        (
            code(row.sampler),
            str(row.setting),
            f"{costs[row.sampler, row.setting]:.1f}",
            *_text_cells(row.quality),
        )
        for row in results.rows
    ]
    measures = ("texts", "perplexity", "95 %", "unigram entropy", "95 %", "distinct", "MAUVE")
    return Table(("texts by", "setting", "cost", *measures), tuple(rows), labels=2)


def _text_cells(quality: TextQuality) -> tuple[str, ...]:
    perplexity, entropy = quality.perplexity_interval, quality.unigram_entropy_interval
    return (
        str(quality.texts),
        f"{quality.perplexity:.1f}",
        f"{perplexity[0]:.1f}–{perplexity[1]:.1f}",
        f"{quality.unigram_entropy:.2f}",
        f"{entropy[0]:.2f}–{entropy[1]:.2f}",
        percent(quality.distinct),
        "–" if quality.mauve is None else f"{quality.mauve:.3f}",
    )


def ablation_table(ablation: Ablation) -> Table:
    """A row per variant and setting: what changing one option does, on the same items."""
    rows = []
    for row in ablation.rows:
        variant = row.variant
        label = f"{variant.axis} = {variant.label}"
        if row.summary is None:
            rows.append((label, "–", f"refused: {variant.refused}", *[""] * 6))
            continue
        summary, pair = row.summary, row.pair
        rows.append(
            (
                f"{label} (base)" if row.is_base else label,
                str(summary.setting),
                percent(summary.accuracy),
                span(summary.interval),
                "" if pair is None else points_between(pair.accuracy, pair.accuracy_interval),
                "" if pair is None else p_text(pair.p_value),
                "" if row.p_holm is None else p_text(row.p_holm),
                f"{summary.flop_equiv:.1f}",
                f"{summary.seconds:.3f}",
            )
        )
    columns = ("variant", "setting", "right", "95 %", "points against base", "p", "Holm")
    return Table((*columns, "cost", "seconds"), tuple(rows), labels=2)


def records_csv(records: Iterable[Record]) -> str:
    """A row per record."""
    records = list(records)
    metrics = list(dict.fromkeys(name for record in records for name in record.metrics))
    columns = ["sampler", "setting", "seed", "item", "correct", "answer", "steps", *COSTS]
    rows = [
        [
            record.sampler,
            str(record.setting),
            record.seed,
            record.item,
            int(record.correct),
            record.answer,
            record.steps,
            *(getattr(record, cost) for cost in COSTS),
            *(record.metrics.get(name, "") for name in metrics),
        ]
        for record in records
    ]
    return csv_text([*columns, *metrics], rows)


def summaries_csv(comparison: Comparison) -> str:
    """A row per sampler and setting."""
    metrics = list(dict.fromkeys(name for s in comparison.summaries for name in s.metrics))
    columns = ["sampler", "curve", "setting", "items", "seeds", "accuracy", "low", "high", "steps"]
    rows = [
        [
            s.sampler,
            curve_name(s.curve, s.setting),
            str(s.setting),
            s.items,
            s.seeds,
            s.accuracy,
            *s.interval,
            s.steps,
            *(getattr(s, cost) for cost in COSTS),
            *(s.metrics.get(name, "") for name in metrics),
        ]
        for s in comparison.summaries
    ]
    return csv_text([*columns, *COSTS, *metrics], rows)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV with a header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return signed(100 * share)


def signed(value: float) -> str:
    """A number with its sign, a true minus, and none for zero."""
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0.0 else text.replace("-", "−")


def signed_between(value: float, interval: tuple[float, float]) -> str:
    """A signed number with its interval."""
    return f"{signed(value)} [{signed(interval[0])}, {signed(interval[1])}]"


def points_between(share: float, interval: tuple[float, float]) -> str:
    """A difference of shares with its interval, in percentage points."""
    return signed_between(100 * share, (100 * interval[0], 100 * interval[1]))


def span(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.0f}–{100 * interval[1]:.0f}"


def p_text(p_value: float) -> str:
    return f"{p_value:.3f}" if p_value >= 0.001 else f"{p_value:.0e}"


def code(name: str) -> str:
    return f"`{name}`"


def _best_by_setting(summaries: Iterable[Summary]) -> dict[Setting, float]:
    best: dict[Setting, float] = {}
    for summary in summaries:
        best[summary.setting] = max(best.get(summary.setting, 0.0), summary.accuracy)
    return best
