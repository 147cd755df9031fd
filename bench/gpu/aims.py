"""What the kernels are to reach on a GPU, as code.

Every aim says how many times longer something else takes than ours: a rival, the fastest of
several, or the floor that no implementation can beat (``bench.gpu.roofline``), of which ours
is then to reach a share. The figures are those of L = 1024, d = 128, bfloat16, batch 1, set
for an H100.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu import attention, vocabulary
from bench.gpu.benchmark import FLOOR, OURS, Case
from bench.gpu.rivals import FLASH, GATHERED, LIBRARY_ASSEMBLED
from bench.report import Target, shape_text
from bench.results import Config, Measurement, as_measurement, read_rows

BEGIN, END = "<!-- aims: begin -->", "<!-- aims: end -->"


@dataclass(frozen=True)
class Aim:
    """Something promised about one shape.

    Attributes:
        title: without the shape.
        rivals: of these the fastest counts.
        least: how many times longer than ours it is to take.
    """

    title: str
    benchmark: str
    dtype: str
    config: Config
    mode: str
    rivals: tuple[str, ...]
    least: float

    @property
    def claim(self) -> str:
        return f"{self.title}: {shape_text(self.config)}"

    @property
    def bar(self) -> str:
        """What is to be reached, in words."""
        if self.rivals == (FLOOR,):
            return f"≥ {self.least:.0%} of the roofline"
        return f"≥ {self.least:.3g}×"

    def judge(self, measurements: Iterable[Measurement]) -> Target:
        """Against what was measured; rivals that could not run do not count."""
        ratios = [
            m.value
            for m in measurements
            if (m.benchmark, m.metric, m.mode, m.dtype)
            == (
                self.benchmark,
                "ratio",
                self.mode,
                self.dtype,
            )
            and m.provider in {f"{rival}/{OURS}" for rival in self.rivals}
            and m.config == self.config
            and m.value is not None
        ]
        fastest = min(ratios, key=lambda ratio: ratio.p50, default=None)
        return Target(self.claim, self.least, fastest)


def _of(case: Case, benchmark: str) -> tuple[str, str, Config]:
    return benchmark, case.dtype_name, case.config


def _attention_aims() -> Iterable[Aim]:
    assembled = tuple(rival.name for rival in LIBRARY_ASSEMBLED)
    for case in attention.aims(toy=False):
        facts = _of(case, attention.NAME)
        grouped = case.shape.q_heads != case.shape.kv_heads
        if grouped:
            for launch in ("graphed", "eager"):
                title = f"grouped backward against the gathered aten backward, {launch}"
                yield Aim(title, *facts, f"backward, {launch}", (GATHERED.name,), 2.5)
            continue
        yield Aim(
            "backward within 2× of its floor, graphed", *facts, "backward, graphed", (FLOOR,), 0.5
        )
        yield Aim(
            "backward against flash's dense one, graphed",
            *facts,
            "backward, graphed",
            (FLASH.name,),
            4.0,
        )
        for launch in ("graphed", "eager"):
            title = f"backward against the best that library calls give, {launch}"
            yield Aim(title, *facts, f"backward, {launch}", assembled, 1.5)
        if case.shape.active == 64:
            # It does not depend on |A|.
            title = "forward within 10 % of flash's, graphed"
            yield Aim(title, *facts, "forward, graphed", (FLASH.name,), 1 / 1.1)


def _entropy_aims() -> Iterable[Aim]:
    for case in vocabulary.entropy_aims(toy=False):
        facts = _of(case, vocabulary.ENTROPY)
        yield Aim("entropy with gradient", *facts, "forward+backward, graphed", (FLOOR,), 0.8)


AIMS: tuple[Aim, ...] = (*_attention_aims(), *_entropy_aims())


def verdict(aim: Aim, measurements: Sequence[Measurement]) -> str:
    """In a word or two: not measured, or the figure and whether it suffices."""
    target = aim.judge(measurements)
    if target.measured is None:
        return "not measured"
    value = target.measured.p50
    figure = f"{value:.0%}" if aim.rivals == (FLOOR,) else f"{value:.2f}×"
    return f"{figure}, {'met' if target.met else 'missed'}"


def table(devices: dict[str, Sequence[Measurement]]) -> list[str]:
    """The aims in Markdown, with a column per device."""
    columns = devices or {"any GPU": ()}
    heading = ["aim", "shape", "to reach", *columns]
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for aim in AIMS:
        verdicts = [verdict(aim, measurements) for measurements in columns.values()]
        shape = f"{aim.dtype} {shape_text(aim.config)}"
        lines.append("| " + " | ".join([aim.title, shape, aim.bar, *verdicts]) + " |")
    return lines


def committed(folder: Path) -> dict[str, Sequence[Measurement]]:
    """The results of every GPU that are in a folder, by the GPU's name.

    Of the benchmarks that there are aims for: others may have been counted, on no GPU.
    """
    benchmarks = {aim.benchmark for aim in AIMS}
    devices: dict[str, list[Measurement]] = {}
    for path in sorted(folder.glob("*.csv")):
        # Figures taken in spite of failing tests are no evidence.
        if path.stem.endswith(("-cpu", "-unverified")):
            continue
        for row in read_rows(path):
            if row["benchmark"] in benchmarks:
                devices.setdefault(row["hardware"], []).append(as_measurement(row))
    return dict(devices)


def docs_section(folder: Path) -> str:
    """The section on the aims in ``docs/kernels.md``, between its two markers."""
    devices = committed(folder)
    met = sum(aim.judge(rows).met for aim in AIMS for rows in devices.values())
    if not devices:
        lead = f"None of the {len(AIMS)} aims has been measured: no GPU was at hand yet."
    else:
        unmeasured = sum(
            all(aim.judge(rows).measured is None for rows in devices.values()) for aim in AIMS
        )
        lead = (
            f"Of {len(AIMS)} aims {unmeasured} are unmeasured; "
            f"{met} of the verdicts below are *met*."
        )
    return "\n".join([BEGIN, "", lead, "", *table(devices), "", END])
