"""Lists given as one option: samplers, numbers, names."""

from __future__ import annotations

from boe.samplers import sampler_from


def split_samplers(text: str) -> list[str]:
    """Sampler specifications from a list; each is checked.

    Options hold commas, so a list in which any has options is separated by semicolons.
    """
    separator = ";" if ";" in text or ":" in text else ","
    if separator == ";" and any("," in spec.partition(":")[0] for spec in text.split(";")):
        raise ValueError(f"separate samplers that have options by semicolons, got {text!r}")
    specs = [spec.strip() for spec in text.split(separator) if spec.strip()]
    if not specs:
        raise ValueError("samplers must name at least one sampler")
    for spec in specs:
        sampler_from(spec)
    if len(set(specs)) < len(specs):
        raise ValueError(f"samplers must be different, got {text!r}")
    return specs


def split_numbers(name: str, text: str, least: int = 1) -> list[int]:
    """Different whole numbers from a comma-separated list."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be numbers separated by commas, got {text!r}") from None
    if any(number < least for number in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(f"{name} must be different numbers of at least {least}, got {text!r}")
    return numbers


def split_values(name: str, text: str) -> list[float | None]:
    """Different numbers, or "none", from a comma-separated list."""
    try:
        values = [None if part.strip() == "none" else float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{name} must be numbers or none, separated by commas, got {text!r}"
        ) from None
    if len(set(values)) < len(values):
        raise ValueError(f"{name} must be different, got {text!r}")
    return values


def split_names(name: str, text: str) -> list[str]:
    """Different names from a comma-separated list."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{name} must be different names, at least one, got {text!r}")
    return names
