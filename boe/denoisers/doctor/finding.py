"""What a check found, and how that is put into words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "failed", "unknown"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check. ``advice`` says what to do, if anything."""

    check: str
    verdict: Verdict
    detail: str
    advice: str = ""


def size_text(count: int) -> str:
    """``count`` bytes in the unit that suits."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
