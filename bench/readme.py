"""The tables of README.md and docs/benchmarks.md: ``python -m bench readme``.

They are made from the committed results.

A section between ``<!-- bench: NAME -->`` and ``<!-- /bench -->`` holds what is made of the
results here; everything else is left alone. Status 1 with ``--check`` if one is outdated.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.decodes_tables import decodes_table, shares_table
from bench.losses import losses_on_cpu
from bench.report import find
from bench.results import RESULTS, Config, Measurement, as_measurement, read_rows
from bench.terminal import console
from boe.evaluate.tables import Table

README = Path(__file__).parents[1] / "README.md"
DOCUMENTS = (README, README.parent / "docs" / "benchmarks.md")
_SECTION = re.compile(r"<!-- bench: (?P<name>\S+) -->\n.*?<!-- /bench -->", re.DOTALL)


def filled(text: str, results: Path = RESULTS) -> str:
    """The document ``text`` with its sections made from the files in ``results``.

    Raises:
        ValueError: a section that is none of :data:`SECTIONS`, or a result that is missing.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in SECTIONS:
            raise ValueError(f"section must be one of {', '.join(SECTIONS)}, got {name!r}")
        return f"<!-- bench: {name} -->\n\n{SECTIONS[name](results)}\n\n<!-- /bench -->"

    return _SECTION.sub(fill, text)


def machine(results: Path) -> str:
    """What all the tables were measured on."""
    rows = [row for name in BENCHMARKS for row in read_rows(results / f"{name}-cpu.csv")]
    places = {(row["hardware"], row["torch"]) for row in rows}
    if len(places) != 1:
        raise ValueError(f"the CPU results must all come from one machine, got {sorted(places)}")
    hardware, torch_version = places.pop()
    return (
        f"Measured on: {hardware}; torch {torch_version}. Ratios are medians of interleaved runs. "
        "Raw rows, with versions and spread: [`bench/results/`](bench/results); `make bench` makes "
        "them and these tables anew."
    )


def attention_table(results: Path) -> str:
    """ActiveQueryAttention against dense attention and the two-call split."""
    found = _measured(results, "attention")
    ratios = [(rival, mode) for rival in ("dense", "two_call") for mode in _MODES]
    lines = []
    for width, length, active, heads in _ATTENTION_ROWS:
        grouped = heads != (8, 8)
        config = {"B": 1, "H": heads[0], "Hkv": heads[1], "d": width, "L": length, "A": active}
        shape = f"{width}, {heads[0]} heads on {heads[1]}" if grouped else str(width)
        cells = [
            f"{_p50(found, 'ratio', f'{rival}/ours', mode, 'float32', config):.{places}f}"
            for (rival, mode), places in zip(ratios, (1, 1, 2, 2), strict=True)
        ]
        lines.append((shape, str(length), str(active), *cells))
    names = {"dense": "dense", "two_call": "two-call"}
    headings = [f"{mode.replace('+', ' + ')}, × {names[rival]}" for rival, mode in ratios]
    return Table(("D", "L", "active", *headings), tuple(lines)).as_markdown()


def entropy_table(results: Path) -> str:
    """entropy_stats with its gradient against what PyTorch offers."""
    found = _measured(results, "entropy")
    lines = []
    for vocabulary in (50258, 126464):
        for dtype in ("float32", "bfloat16"):
            config = {"N": 256, "V": vocabulary}
            times = [
                _p50(found, "time_ms", provider, "forward+backward", dtype, config)
                for provider in ("ours", "eager", "compile", "categorical")
            ]
            lines.append((f"{vocabulary:,}", dtype, *(f"{time:.0f}" for time in times)))
    rivals = ("eager PyTorch", "`torch.compile`", "`Categorical.entropy`")
    return Table(("V", "dtype", "ours, ms", *rivals), tuple(lines), labels=2).as_markdown()


def step_table(results: Path) -> str:
    """A BoE step in forwards, by active rows."""
    found = _measured(results, "step")
    providers = (
        "replay",
        "replay, PyTorch's products",
        "naive_replay",
        "dense, α=0",
        "dense, α=0.5",
        "forward, oneDNN",
    )
    lines = []
    for active in (32, 64, 128, 256, 512):
        config = {"layers": 12, "width": 768, "L": 512, "A": active}
        ratios = [
            _p50(found, "ratio", f"{name}/forward", "step", "float32", config) for name in providers
        ]
        ideal = 1 + 2 * active / 512
        lines.append((str(active), f"{ideal:.2f}", *(f"{ratio:.2f}" for ratio in ratios)))
    headings = (
        "active rows",
        "ideal 1 + 2·|A|/L",
        "replay",
        "replay, PyTorch's products",
        "naive replay",
        "dense, α = 0",
        "dense, midpoint",
        "a forward by oneDNN",
    )
    return Table(headings, tuple(lines), labels=0).as_markdown()


BENCHMARKS = ("attention", "entropy", "step")
SECTIONS: Mapping[str, Callable[[Path], str]] = {
    "machine": machine,
    "attention": attention_table,
    "entropy": entropy_table,
    "step": step_table,
    "losses": losses_on_cpu,
    "decodes": decodes_table,
    "decodes-time": shares_table,
}

_MODES = ("backward", "forward+backward")
_ATTENTION_ROWS = (
    (64, 1024, 16, (8, 8)),
    (64, 1024, 64, (8, 8)),
    (64, 1024, 256, (8, 8)),
    (128, 1024, 64, (8, 8)),
    (128, 4096, 64, (8, 8)),
    (128, 1024, 256, (28, 4)),
)


def _measured(results: Path, benchmark: str) -> list[Measurement]:
    return [as_measurement(row) for row in read_rows(results / f"{benchmark}-cpu.csv")]


def _p50(
    found: Sequence[Measurement], metric: str, provider: str, mode: str, dtype: str, config: Config
) -> float:
    value = find(found, metric, provider, mode, dtype, config)
    if value is None:
        raise ValueError(f"no {metric} of {provider}, {mode}, {dtype}, {dict(config)} is recorded")
    return value.p50


def main(argv: Sequence[str]) -> None:
    """Fill the documents, or tell whether they are up to date."""
    parser = argparse.ArgumentParser(prog="python -m bench readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(argv)
    outdated = 0
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        new = filled(text)
        if new == text:
            console().print(f"{document.name} is up to date")
        elif options.check:
            outdated += 1
            console().print(f"{document.name} is outdated: run python -m bench readme")
        else:
            document.write_text(new, encoding="utf-8")
            console().print(f"{document.name} has new figures")
    if outdated:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
