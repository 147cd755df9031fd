"""GSM8K by d1's rules."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"-?\d+\.?\d*")


def extract_number(generation: str) -> float | None:
    """The number that a generation answers with, or ``None``.

    The first ``\\boxed{…}`` that holds a number, not counting dots and blanks to be filled
    in; the first number in it counts. Else the last number between ``<answer>`` and
    ``</answer>``. As in d1, a comma ends a number: "1,200" counts as 1.
    """
    for content in re.findall(r"\\boxed\{(.*?)\}", generation):
        content = content.strip()
        if not content or re.fullmatch(r"\.+", content):
            continue
        found = _NUMBER.search(content)
        if found:
            return float(found.group())
    element = re.search(r"<answer>(.*?)</answer>", generation, re.DOTALL)
    if element:
        numbers = _NUMBER.findall(element.group(1))
        if numbers:
            return float(numbers[-1])
    return None


def d1_gsm8k(generation: str, truth: float) -> bool:
    """Whether the number that a generation answers with equals ``truth``."""
    return extract_number(generation) == truth
