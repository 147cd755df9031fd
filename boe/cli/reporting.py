"""``boe report``: documents made from stored results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from boe.cli.output import console_for
from boe.evaluate.document import fill_document
from boe.files import write_whole


def run_report(documents: Sequence[Path], check: bool, figures: bool) -> bool:
    """Fill the sections of documents in; whether they are (or were) up to date.

    Args:
        check: write nothing, only find out.
    """
    console = console_for()
    for document in documents:
        if not document.is_file():
            raise FileNotFoundError(f"document {document} is not a file")
    current = True
    for document in documents:
        filled = fill_document(document, figures and not check)
        for name in filled.missing:
            console.print(f"{document}: no result at {name} yet", soft_wrap=True)
        for name in filled.stale:
            verb = "is out of date" if check else "was made anew"
            console.print(f"{document}: section {name!r} {verb}", soft_wrap=True)
        if filled.stale and not check:
            write_whole(document, filled.text)
        if not filled.stale:
            console.print(f"{document}: up to date", soft_wrap=True)
        current = current and not filled.stale
    return current or not check
