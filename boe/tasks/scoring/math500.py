"""MATH-500: answers compared as normalised TeX, after Hendrycks et al. 2021.

The rules are those of the MATH data set's scorer; what they cannot make equal counts as
different, even if it is the same number.
"""

from __future__ import annotations

import re

from boe.tasks.scoring.boxes import last_boxed

_DROPPED = ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%", "%")
_REPLACED = (("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"))


def normalise(answer: str) -> str:
    """The canonical form of a TeX answer."""
    for old, new in (("\n", ""), ("\\!", ""), *_REPLACED):
        answer = answer.replace(old, new)
    for dropped in _DROPPED[2:7]:
        answer = answer.replace(dropped, "")
    answer = answer.partition("\\text{ ")[0]  # a unit
    for dropped in _DROPPED[7:]:
        answer = answer.replace(dropped, "")
    answer = answer.replace(" .", " 0.").replace("{.", "{0.")
    if answer.startswith("."):
        answer = "0" + answer
    name, equals, value = answer.partition("=")
    if equals and "=" not in value and len(name) <= 2:
        answer = value
    answer = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", answer)
    answer = answer.replace(" ", "")
    answer = _braced_fractions(answer)
    if answer == "0.5":
        answer = "\\frac{1}{2}"
    return _slash_to_fraction(answer)


def _braced_fractions(answer: str) -> str:
    """``\\frac12`` and ``\\frac1{72}`` with all their braces."""
    head, *parts = answer.split("\\frac")
    out = head
    for part in parts:
        out += "\\frac"
        if part.startswith("{"):
            out += part
        elif len(part) < 2:
            return answer
        else:
            numerator, denominator, rest = part[0], part[1], part[2:]
            braced = denominator if denominator == "{" else f"{{{denominator}}}"
            out += f"{{{numerator}}}{braced}{rest}"
    return out


def _slash_to_fraction(answer: str) -> str:
    """``3/4`` as ``\\frac{3}{4}``, if both are whole numbers written plainly."""
    match = re.fullmatch(r"(-?(?:0|[1-9]\d*))/(-?(?:0|[1-9]\d*))", answer)
    return f"\\frac{{{match[1]}}}{{{match[2]}}}" if match else answer


def is_equivalent(answer: str | None, truth: str | None) -> bool:
    """Whether two TeX answers have the same canonical form. ``None`` equals only itself."""
    if answer is None or truth is None:
        return answer is truth
    return normalise(answer) == normalise(truth)


def extract_answer(generation: str) -> str | None:
    """What a generation answers by d1's rule: the last box, else the ``<answer>`` element."""
    boxed = last_boxed(generation)
    if boxed is not None:
        return boxed
    element = re.search(r"<answer>(.*?)</answer>", generation, re.DOTALL)
    return element.group(1).strip() if element else None


def d1_math500(generation: str, truth: str) -> bool:
    """Whether the answer in a generation equals ``truth`` by d1's rule."""
    answer = extract_answer(generation)
    return answer is not None and is_equivalent(answer, truth)
