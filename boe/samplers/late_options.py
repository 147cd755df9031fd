"""The text of configurations that have gained options since results were stored under it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def repr_of(config: Any, late: tuple[str, ...]) -> str:
    """A dataclass's ``repr``, but fields in ``late`` show only where they are not at default.

    Stored results are kept under this text (:func:`boe.evaluate.running.describe`): an option
    that did not exist then, and is off, must not make another sampler of the same one.
    """
    shown = [
        f"{field.name}={getattr(config, field.name)!r}"
        for field in fields(config)
        if field.name not in late or getattr(config, field.name) != field.default
    ]
    return f"{type(config).__qualname__}({', '.join(shown)})"
