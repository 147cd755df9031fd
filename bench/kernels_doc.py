"""The sections of docs/kernels.md that are made from results."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs" / "kernels.md"


def put_section(document: Path, section: str) -> None:
    """Bring a section up to date: its first and last line are the markers around it."""
    begin, *_, end = section.splitlines()
    text = document.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    document.write_text(before + section + after, encoding="utf-8")
