"""The sections of docs/benchmarks.md about whole decodes."""

from __future__ import annotations

from pathlib import Path

from bench.decodes import (
    LONG_PROMPT_LIMIT,
    NAME,
    PARTS,
    RIVAL,
    SAMPLERS,
    SLACK,
    has_long_prompt,
    targets,
)
from bench.report import shape_text
from bench.results import Config, Measurement, as_measurement, read_rows
from boe.evaluate.tables import Table, code
from boe.tasks import TASKS

_HEADINGS = ("task", "L", "masks", "batch", "tokens a step")


def decodes_table(results: Path) -> str:
    """Decodes over those in confidence order, with the limit beside each, misses in bold."""
    measured, place = _recorded(results)
    lines = []
    for config in _shapes(measured):
        ratios = _values(measured, "ratio", config)
        ideals = _values(measured, "ideal", config)
        cells = []
        for spec in SAMPLERS:
            ratio, limit = ratios[spec][0], SLACK * ideals[spec][0]
            shown = f"{ratio:.2f}" if ratio <= limit else f"**{ratio:.2f}**"
            cells.append(f"{shown} ({limit:.2f})")
        lines.append((*_words(config), *cells))
    found = targets(measured)
    met = sum(target.met for target in found)
    sentences = [
        f"Measured on: {place}. {met} of {len(found)} limits are kept to, those of long prompts "
        "counted twice."
    ]
    long = [m for m in measured if m.metric == "ratio" and has_long_prompt(m.config)]
    if long:
        worst = max(m.value.p50 for m in long if m.value is not None)
        sentences.append(
            f"With a long prompt a decode takes at most {worst:.2f} times its rival's, where "
            f"{LONG_PROMPT_LIMIT} is allowed."
        )
    table = Table((*_HEADINGS, *map(code, SAMPLERS)), tuple(lines))
    return f"{' '.join(sentences)}\n\n{table.as_markdown()}"


def shares_table(results: Path) -> str:
    """Per cent of a decode's time, in the order of ``PARTS``."""
    measured, _ = _recorded(results)
    specs = (RIVAL, *SAMPLERS)
    lines = []
    for config in _shapes(measured):
        shares = _values(measured, "share", config)
        cells = [" / ".join(f"{100 * share:.0f}" for share in shares[spec]) for spec in specs]
        lines.append((*_words(config), *cells))
    return Table((*_HEADINGS, *map(code, specs)), tuple(lines)).as_markdown()


def _recorded(results: Path) -> tuple[list[Measurement], str]:
    """What is recorded, and on which machine.

    Raises:
        ValueError: nothing is, or rows of several machines.
    """
    rows = read_rows(results / f"{NAME}-cpu.csv")
    places = {f"{row['hardware']}; torch {row['torch']}" for row in rows}
    if len(places) != 1:
        raise ValueError(
            f"decodes must be recorded on one machine, got {', '.join(sorted(places)) or 'none'}"
        )
    return [as_measurement(row) for row in rows], places.pop()


def _shapes(measured: list[Measurement]) -> list[Config]:
    """Every shape once, in the order of the tasks, batches and tokens."""
    shapes = {shape_text(m.config): m.config for m in measured}
    tasks = list(TASKS)

    def place(config: Config) -> tuple[int, ...]:
        return tasks.index(str(config["task"])), int(config["batch"]), int(config["tokens"])

    return sorted(shapes.values(), key=place)


def _values(measured: list[Measurement], metric: str, config: Config) -> dict[str, list[float]]:
    """Medians of a metric by sampler; of shares in the order of ``PARTS``."""
    found: dict[str, list[float]] = {}
    chosen = [m for m in measured if m.metric == metric and m.config == config]
    if metric == "share":
        chosen.sort(key=lambda m: PARTS.index(m.provider))
    for m in chosen:
        assert m.value is not None
        found.setdefault(m.mode, []).append(m.value.p50)
    return found


def _words(config: Config) -> tuple[str, ...]:
    return tuple(str(value) for value in config.values())
