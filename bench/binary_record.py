"""What the binaries of all kernels need, as files, and the section of docs/kernels.md from them.

``python -m bench resources --record`` writes both: a file per version of Triton, in which each
binary has a row.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from bench.binaries import Binary
from bench.results import RESULTS, write_rows
from bench.units import TARGETS, UNITS

FOLDER = RESULTS / "binaries"
BEGIN, END = "<!-- binaries: begin -->", "<!-- binaries: end -->"

_TEXTS = ("op", "case", "kernel", "architecture", "options")
_COLUMNS = tuple(field.name for field in fields(Binary) if field.name != "error")
_STEM = "triton-"

Record = dict[str, list[Binary]]
"""Binaries by the version of Triton that made them."""


def read_record(folder: Path = FOLDER) -> Record:
    """What the files of the folder hold, the oldest version first."""
    found: Record = {}
    paths = folder.glob(f"{_STEM}*.csv")
    for path in sorted(paths, key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)]):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        found[path.stem.removeprefix(_STEM)] = [
            Binary(**{name: text if name in _TEXTS else int(text) for name, text in row.items()})  # type: ignore[arg-type]
            for row in rows
        ]
    return found


def write_record(folder: Path, version: str, binaries: Sequence[Binary]) -> None:
    """Put ``binaries`` in the place of what that version of Triton made for their architectures.

    What does not compile is left out: the command that compiles it names it.
    """
    made_anew = {binary.architecture for binary in binaries}
    before = read_record(folder).get(version, [])
    kept = [binary for binary in before if binary.architecture not in made_anew]
    made = [each for each in (*kept, *binaries) if not each.error]
    rows = [{name: getattr(each, name) for name in _COLUMNS} for each in made]
    write_rows(folder / f"{_STEM}{version}.csv", _COLUMNS, rows)


# --- docs ---------------------------------------------------------------------------


def docs_section(record: Record) -> str:
    """The section of docs/kernels.md between its two markers: all binaries, and what spills."""
    lines = [BEGIN, ""]
    lines += ["| Triton | architecture | binaries | spill | most shared memory, of | registers |"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    for version, binaries in record.items():
        for name in TARGETS:
            own = [binary for binary in binaries if binary.architecture == name]
            if own:
                lines.append(f"| {version} | {name} | {_totals(own)} |")
    spilling = _spilling(record)
    lines += [""]
    if not spilling:
        lines += ["None spills."]
    else:
        lines += ["Those that spill:", ""]
        lines += ["| Triton | architecture | kernel | in the cases | most bytes per lane |"]
        lines += ["|---|---|---|---|---:|"]
        lines += spilling
    return "\n".join([*lines, "", END])


def _totals(binaries: Sequence[Binary]) -> str:
    limit = UNITS[binaries[0].architecture].shared_per_group
    shared = max(binary.shared for binary in binaries)
    registers = max(binary.registers for binary in binaries)
    spill = sum(binary.spilled > 0 for binary in binaries)
    return f"{len(binaries):,} | {spill} | {shared / 1024:.0f} KB, {limit / 1024:.0f} | {registers}"


def _spilling(record: Record) -> list[str]:
    """A row for each kernel of an op on an architecture; its cases by name."""
    found: dict[tuple[str, str, str], list[Binary]] = defaultdict(list)
    for version, binaries in record.items():
        for binary in binaries:
            if binary.spilled:
                found[version, binary.architecture, binary.kernel].append(binary)
    rows = []
    for key, spilling in found.items():
        cases = "; ".join(dict.fromkeys(binary.case for binary in spilling))
        most = max(binary.spilled for binary in spilling)
        rows.append(f"| {' | '.join(key)} | {cases} | {most} |")
    return rows
