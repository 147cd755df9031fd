"""Checks of arguments that any caller may get wrong: the message names argument and value."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import fields
from typing import Any


def check_whole(name: str, value: Any, least: int | None = 1) -> None:
    """``value`` is a whole number, and at least ``least``.

    Raises:
        TypeError: it is no whole number. ValueError: it is too small.
    """
    if not _is_whole(value):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_number(name: str, value: Any) -> None:
    """``value`` is a number of Python's or NumPy's.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_numbers(options: Any) -> None:
    """Every field of a dataclass that is declared a number, or whole, holds one.

    Declared by name: as ``float``, ``int`` or one of them ``| None``. Other fields are none of
    this function's business.

    Raises:
        TypeError: a field does not; the message names it.
    """
    for field in fields(options):
        kind, *others = str(field.type).split(" | ")
        value = getattr(options, field.name)
        if value is None and others == ["None"]:
            continue
        if kind == "int":
            check_whole(field.name, value, least=None)
        elif kind == "float":
            check_number(field.name, value)


def refuse_unused(options: Any, names: Iterable[str], why: str) -> None:
    """The fields ``names`` of a dataclass, which nothing would read, are at their defaults.

    Args:
        why: what they need, and what is there instead: the rest of the message.

    Raises:
        ValueError: a field is not; the message names it.
    """
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in names and value != field.default:
            raise ValueError(f"{field.name}={value!r} has no effect: it needs {why}")


def token_ids(name: str, ids: Iterable[Any], vocab_size: int) -> tuple[int, ...]:
    """Token ids as Python's integers, from any sequence or tensor of them.

    Raises:
        TypeError: these are no ids. ValueError: an id is not in the vocabulary.
    """
    try:
        found = tuple(operator.index(token) for token in ids)
    except TypeError:
        raise TypeError(f"{name} must hold token ids, got {ids!r}") from None
    for token in found:
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name} must hold ids in [0, {vocab_size}), got {token}")
    return found


def _is_whole(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True
