"""Samplers: rules that decide which masked positions are revealed next."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_type_hints

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
    hints = get_type_hints(kind)
    known = {field.name: hints[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, equals, text = option.partition("=")
        if not equals or (key not in known and not (key == "preset" and kind is BoE)):
            offered = ", ".join(known) or "none"
            raise ValueError(f"{name} has no option {option!r}; its options: {offered}")
        if key in values:
            raise ValueError(f"{name} has the option {key} twice in {spec!r}")
        values[key] = text if key == "preset" else _parse(key, text, known[key])
    if kind is BoE:
        return BoE.preset(values.pop("preset", "default"), **values)
    return kind(**values)


def _parse(key: str, text: str, kind: Any) -> Any:
    accepted = get_args(kind) or (kind,)
    if type(None) in accepted and text == "none":
        return None
    try:
        if bool in accepted:
            return {"true": True, "false": False}[text.lower()]
        for number in (int, float):
            if number in accepted:
                return number(text)
    except (ValueError, KeyError):
        names = " or ".join(getattr(one, "__name__", str(one)) for one in accepted)
        raise ValueError(f"{key} must be {names}, got {text!r}") from None
    return text
