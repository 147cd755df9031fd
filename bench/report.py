"""Tables of results for the terminal, and what they say about the targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from bench.results import Config, Measurement, Quantiles
from bench.terminal import console as console


@dataclass(frozen=True)
class Target:
    """A ratio that is to be reached."""

    claim: str
    least: float
    measured: Quantiles | None
    """``None`` where this run does not include the shape."""
    headline: bool = True
    """Listed even when met."""

    @property
    def met(self) -> bool:
        return self.measured is not None and self.measured.p50 >= self.least

    @property
    def missed(self) -> bool:
        return self.measured is not None and not self.met


def shape_text(config: Config) -> str:
    """A shape in one line, e.g. ``H=8 d=64 L=1024 A=64``."""
    return " ".join(f"{key}={value}" for key, value in config.items())


def find(
    measurements: Iterable[Measurement],
    metric: str,
    provider: str,
    mode: str,
    dtype: str,
    config: Config,
) -> Quantiles | None:
    """The value measured, or ``None`` when there is none."""
    for found in measurements:
        if (found.metric, found.provider, found.mode, found.dtype) == (
            metric,
            provider,
            mode,
            dtype,
        ) and found.config == config:
            return found.value
    return None


def print_table(
    title: str, measurements: Sequence[Measurement], metric: str, also: str | None = None
) -> None:
    """One line per dtype, shape and mode, one column per provider of ``metric``.

    Args:
        also: a second metric, whose providers get columns of their own at the right.
    """
    chosen = [m for m in measurements if m.metric in (metric, also)]
    if not chosen:
        return
    # dict rather than set: in the order in which they were measured.
    providers = list(dict.fromkeys((m.metric, m.provider) for m in chosen))
    providers.sort(key=lambda pair: pair[0] != metric)
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ("dtype", "shape", "mode"):
        table.add_column(heading, no_wrap=True)
    for _, provider in providers:
        # The spaces give a narrow terminal a place to break the line.
        table.add_column(provider.replace("/", " / "), justify="right", min_width=6)
    lines: dict[tuple[str, str, str], dict[tuple[str, str], str]] = {}
    for m in chosen:
        cells = lines.setdefault((m.dtype, shape_text(m.config), m.mode), {})
        cells[m.metric, m.provider] = _cell(m)
    last = ""
    for (dtype, shape, mode), cells in lines.items():
        if last and f"{dtype} {shape}" != last:
            table.add_section()
        last = f"{dtype} {shape}"
        table.add_row(dtype, shape, mode, *(cells.get(pair, "–") for pair in providers))
    console().print(table)


def print_targets(targets: Sequence[Target]) -> None:
    """The headline targets, every one that was missed, and how many were met."""
    if not targets:
        return
    table = Table(title="Targets", title_justify="left", header_style="bold")
    for heading in ("target", "at least", "measured", "p20–p80", ""):
        table.add_column(heading)
    for target in targets:
        if not (target.headline or target.missed):
            continue
        measured = target.measured
        verdict = "[green]met[/]" if target.met else "[bold red]missed[/]"
        table.add_row(
            target.claim,
            f"{target.least:g}×",
            "–" if measured is None else f"{measured.p50:.2f}×",
            "–" if measured is None else f"{measured.p20:.2f}–{measured.p80:.2f}",
            "not measured" if measured is None else verdict,
        )
    if table.row_count:
        console().print(table)
    met = sum(target.met for target in targets)
    missed = sum(target.missed for target in targets)
    console().print(
        f"targets: {met} met, {missed} missed, {len(targets) - met - missed} not measured"
    )


def _cell(measurement: Measurement) -> str:
    value = measurement.value
    if value is None:
        return "unavailable"
    if measurement.metric != "ratio":
        return f"{value.p50:.3g}" if value.p50 < 100 else f"{value.p50:.0f}"
    # A ratio is rival/ours: below 1 the rival was faster.
    colour = "green" if value.p50 >= 1 else "red"
    return f"[{colour}]{value.p50:.2f}×[/]"
