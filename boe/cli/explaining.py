"""``boe samplers``: what a strategy can be put together from, as the docstrings have it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from rich.table import Table

from boe.cli.output import console_for, show_table
from boe.samplers.specs import option_text, parts_by_kind

_ATTRIBUTE = re.compile(r"    (\w+(?:, \w+)*): (.*)")


def run_samplers(name: str | None) -> None:
    """Show all parts, a line each, or one with its options.

    Raises:
        ValueError: there is no such part.
    """
    kinds = parts_by_kind()
    if name is None:
        for title, parts in kinds.items():
            table = Table(title=title, show_header=False, title_justify="left")
            for part, kind in parts.items():
                table.add_row(part, _summary(kind))
            show_table(console_for(), table)
        return
    known: dict[str, Any] = {part: kind for parts in kinds.values() for part, kind in parts.items()}
    if name not in known:
        raise ValueError(f"sampler must be one of {', '.join(known)}, got {name!r}")
    console_for().print(_text_of(known[name]).split("\nAttributes:")[0].strip(), soft_wrap=True)
    described = dict(_described(known[name]))
    table = Table(title="options", title_justify="left")
    for column in ("option", "default", ""):
        table.add_column(column, no_wrap=column == "option")
    for field in fields(known[name]):
        default = "required" if field.default is MISSING else option_text(field.default)
        table.add_row(field.name, default, described.get(field.name, ""))
    if table.rows:
        show_table(console_for(), table)


def _text_of(kind: type) -> str:
    return (inspect.getdoc(kind) or "").replace("``", "")


def _summary(kind: type) -> str:
    return " ".join(_text_of(kind).split("\n\n")[0].split())


def _described(kind: type) -> Iterator[tuple[str, str]]:
    """Attributes of a class and what its docstring says of them."""
    names: list[str] = []
    lines: list[str] = []
    section = _text_of(kind).partition("\nAttributes:\n")[2]
    for line in [*section.splitlines(), ""]:
        begins = _ATTRIBUTE.fullmatch(line)
        if begins or not line.startswith("        "):
            yield from ((name, " ".join(lines)) for name in names)
            names, lines = [], []
            if not begins:
                break
            names, lines = begins[1].split(", "), [begins[2]]
        else:
            lines.append(line.strip())
