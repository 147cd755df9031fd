"""Samplers: rules that decide which masked positions are revealed next."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from boe.samplers.base import Sampler, Scores, Step, StepCost
from boe.samplers.boe import BoE
from boe.samplers.greedy import Confidence, Entropy, Margin, Random

SAMPLERS: dict[str, type[Sampler]] = {
    kind.name: kind for kind in (Random, Confidence, Margin, Entropy, BoE)
}

__all__ = [
    "SAMPLERS",
    "BoE",
    "Confidence",
    "Entropy",
    "Margin",
    "Random",
    "Sampler",
    "Scores",
    "Step",
    "StepCost",
    "sampler_from",
]


def sampler_from(spec: str) -> Sampler:
    """A sampler from its name and options: ``boe``, ``boe:preset=paper``, ``boe:alpha=1,rho=0.5``.

    Raises:
        ValueError: unknown sampler or option, or a value that does not fit.
    """
    name, _, options = spec.partition(":")
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    kind = SAMPLERS[name]
    known = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, equals, text = option.partition("=")
        if not equals or (key not in known and not (key == "preset" and kind is BoE)):
            offered = ", ".join(known) or "none"
            raise ValueError(f"{name} has no option {option!r}; its options: {offered}")
        values[key] = text if key == "preset" else _parse(key, text, str(known[key]))
    if kind is BoE:
        return BoE.preset(values.pop("preset", "default"), **values)
    return kind(**values)


def _parse(key: str, text: str, annotation: str) -> Any:
    try:
        if "None" in annotation and text == "none":
            return None
        if annotation.startswith("int"):
            return int(text)
        if annotation.startswith("float"):
            return float(text)
        if annotation == "bool":
            return {"true": True, "false": False}[text.lower()]
    except (ValueError, KeyError):
        raise ValueError(f"{key} must be a {annotation}, got {text!r}") from None
    return text
