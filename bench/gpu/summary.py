"""A run's results as Markdown: environment, correctness, aims, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench import llm_step
from bench.gpu import aims, attention, correctness, replay, steering, vocabulary
from bench.gpu.benchmark import FLOOR, OURS
from bench.gpu.roofline import ceilings_of
from bench.gpu.store import HARNESS, Store
from bench.losses import losses_section
from bench.report import find, shape_text
from bench.results import Measurement

MACHINE = "machine"
"""The benchmark whose rows say what the system tells of its GPU, in their notes."""

Line = dict[str, Measurement]
"""Times of one shape and mode by provider."""


def write_summary(store: Store, unverified: bool) -> None:
    """Write the summary of everything stored for this device beside the results."""
    store.summary.parent.mkdir(parents=True, exist_ok=True)
    store.summary.write_text(summary(store, unverified), encoding="utf-8")


def summary(store: Store, unverified: bool = False) -> str:
    measured = store.measurements
    environment = store.environment
    lines = [f"# {environment.hardware}", ""]
    if unverified:
        lines += [
            "**Timed in spite of failing tests. These figures are for finding faults, not for "
            "publishing.**",
            "",
        ]
    lines += [
        "Written by `python -m bench gpu`; every number is from the CSV file of the same name. "
        "What is measured and how: [docs/benchmarks.md](../../docs/benchmarks.md).",
        "",
        f"- torch {environment.torch_version}, Triton {environment.triton_version}, "
        f"Python {environment.python_version}"
        + (f", CUDA {environment.cuda_version}" if environment.cuda_version else "")
        + (f", driver {environment.driver_version}" if environment.driver_version else ""),
        f"- commit: {', '.join(store.commits) or 'nothing stored'}",
    ]
    lines += [f"- {what}: {value:,.0f}" for what, value in ceilings_of(iter(measured)).items()]
    lines += [f"- {m.provider}: {m.note}" for m in measured if m.benchmark == MACHINE]
    lines += ["", "## Correctness", "", *_correctness(measured)]
    lines += ["", "## Aims", "", *aims.table({environment.hardware: measured})]
    lines += ["", "## Where we lose", "", *losses_section(measured)]
    lines += ["", "## A decoding step of a model of 8 billion parameters", "", *_steps(measured)]
    lines += ["", "## Attention at the aims' shapes", ""]
    promised = [case.config for case in attention.aims(toy=False)]
    lines += _times(m for m in measured if m.benchmark == attention.NAME and m.config in promised)
    lines += ["", "## Backward through the active rows, graphed", "", *_sweep(measured)]
    lines += ["", "## Dense attention", ""]
    lines += _times(m for m in measured if m.benchmark == attention.NAME and "A" not in m.config)
    for title, name in (
        ("Attention of a replay", replay.NAME),
        ("Attention mass", replay.MASS),
        ("Entropy", vocabulary.ENTROPY),
        ("Entropy of a linear head", vocabulary.HEAD),
        ("Soft embeddings", steering.SOFT),
        ("Influence scores", steering.SCORES),
        ("Token draws", steering.SAMPLING),
    ):
        lines += ["", f"## {title}", "", *_times(m for m in measured if m.benchmark == name)]
    lines += ["", "## What could not be timed", "", *_failures(measured)]
    return "\n".join(lines) + "\n"


def _correctness(measured: Sequence[Measurement]) -> list[str]:
    tests = [m for m in measured if m.benchmark == correctness.NAME]
    if not tests:
        return ["No tests have been run."]
    lines = ["| file | passed | failed | skipped |", "|---|---|---|---|"]
    files: dict[str, dict[str, int]] = {}
    for m in tests:
        if m.provider == "pytest" and m.value is not None:
            files.setdefault(str(m.config["file"]), {})[m.metric] = round(m.value.p50)
    for file, counts in sorted(files.items()):
        figures = (str(counts.get(what, 0)) for what in ("passed", "failed", "skipped"))
        lines.append(f"| {file} | {' | '.join(figures)} |")
    failures = [f"- `{m.provider}`: {_cell(m.note)}" for m in tests if m.metric == "failure"]
    lines += ["", "**Failed:**" if failures else "Everything that ran passed.", "", *failures]
    for m in measured:
        if m.benchmark == correctness.SANITIZER and m.provider != HARNESS:
            found = "not run" if m.value is None else f"{m.value.p50:.0f} errors"
            lines += [f"compute-sanitizer {m.config['tool']}: {found}. {_cell(m.note)}"]
    return lines


def _lines(measurements: Iterable[Measurement]) -> dict[tuple[str, str, str], Line]:
    lines: dict[tuple[str, str, str], Line] = {}
    for m in measurements:
        if m.metric == "time_ms":
            key = (m.dtype, shape_text(m.config), m.mode)
            lines.setdefault(key, {})[m.provider] = m
    return lines


def _times(measurements: Iterable[Measurement]) -> list[str]:
    """Microseconds of every provider, one line per shape and mode."""
    found = _lines(measurements)
    if not found:
        return ["Not measured."]
    providers = [OURS, *dict.fromkeys(p for line in found.values() for p in line)]
    providers = [p for p in dict.fromkeys(providers) if p != FLOOR]
    heading = ["dtype", "shape", "mode", *providers, "ours, of the roofline"]
    lines = ["Microseconds, p50.", "", f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    for (dtype, shape, mode), line in found.items():
        cells = [_microseconds(line.get(provider)) for provider in providers]
        lines.append(f"| {' | '.join([dtype, shape, mode, *cells, _share(line)])} |")
    return lines


def _sweep(measured: Sequence[Measurement]) -> list[str]:
    """Ours against the best rival at every shape that has an |A|."""
    found = _lines(
        m
        for m in measured
        if m.benchmark == attention.NAME and m.mode == "backward, graphed" and "A" in m.config
    )
    dense = {
        (m.dtype, shape_text(m.config)): m.value.p50
        for m in measured
        if m.benchmark == attention.NAME
        and (m.mode, m.metric, m.provider) == ("backward, graphed", "time_ms", "flash")
        and m.value is not None
    }
    if not found:
        return ["Not measured."]
    heading = ("dtype", "shape", "ours, µs", "of the roofline", "two_call", "gathered_aten")
    lines = [
        "Times of the rivals, and of flash's backward through all rows, over ours.",
        "",
        f"| {' | '.join((*heading, 'flash, dense'))} |",
        "|---" * (len(heading) + 1) + "|",
    ]
    for (dtype, shape, _), line in found.items():
        ours = line.get(OURS)
        cells = [_microseconds(ours), _share(line)]
        for rival in ("two_call", "gathered_aten"):
            cells.append(_ratio(_value(line.get(rival)), _value(ours)))
        whole = dense.get((dtype, shape.rsplit(" A=", 1)[0]), dense.get((dtype, shape)))
        lines.append(f"| {' | '.join([dtype, shape, *cells, _ratio(whole, _value(ours))])} |")
    return lines


def _steps(measured: Sequence[Measurement]) -> list[str]:
    """What a step costs beside one forward and beside the confidence step."""
    steps = [m for m in measured if m.benchmark == llm_step.NAME]
    timed = [m for m in steps if m.metric == "time_ms"]
    if not timed:
        return ["Not measured."]
    heading = ("shape", "step", "ms", "× forward", "× confidence", "1 + \\|A\\|/L", "peak, MiB")
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    for m in timed:
        about = (m.mode, m.dtype, m.config)
        figures = (
            ("ratio", f"{m.provider}/forward", ".2f"),
            ("over_confidence", f"{m.provider}/confidence", ".2f"),
            ("floor", f"{m.provider}: 1+|A|/L", ".2f"),
            ("peak_memory_mb", m.provider, ",.0f"),
        )
        found = ((find(steps, metric, name, *about), form) for metric, name, form in figures)
        cells = ["–" if value is None else format(value.p50, form) for value, form in found]
        taken = "–" if m.value is None else f"{m.value.p50:.1f}"
        lines.append(f"| {' | '.join([shape_text(m.config), m.provider, taken, *cells])} |")
    return lines


def _failures(measured: Sequence[Measurement]) -> list[str]:
    """Why values are missing: once per benchmark, provider and reason."""
    reasons: dict[tuple[str, str, str], int] = {}
    for m in measured:
        if m.value is None and m.metric == "time_ms":
            key = (m.benchmark, m.provider, _cell(m.note))
            reasons[key] = reasons.get(key, 0) + 1
    if not reasons:
        return ["Nothing."]
    return [
        f"- {benchmark}, {provider}, {count} times: {why}"
        for (benchmark, provider, why), count in reasons.items()
    ]


def _value(m: Measurement | None) -> float | None:
    return None if m is None or m.value is None else m.value.p50


def _microseconds(m: Measurement | None) -> str:
    value = _value(m)
    if value is None:
        return "–"
    microseconds = 1e3 * value
    return f"{microseconds:.1f}" if microseconds < 1000 else f"{microseconds:,.0f}"


def _ratio(theirs: float | None, ours: float | None) -> str:
    return "–" if theirs is None or ours is None else f"{theirs / ours:.2f}×"


def _share(line: Line) -> str:
    floor, ours = _value(line.get(FLOOR)), _value(line.get(OURS))
    return "–" if floor is None or ours is None else f"{floor / ours:.0%}"


def _cell(text: str) -> str:
    """Text that breaks no table."""
    return text.replace("|", "\\|").replace("\n", " ")
