"""How a decode is run, besides its sampler and its seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from boe.decoding import Budget, Cosine, FrontLoaded, TokensPerStep

BUDGETS: dict[str, type[TokensPerStep] | type[FrontLoaded] | type[Cosine]] = {
    "tokens_per_step": TokensPerStep,
    "steps": FrontLoaded,
    "cosine": Cosine,
}
"""The fields of a setting that say how many tokens a step reveals; exactly one is given."""


@dataclass(frozen=True)
class Setting:
    """One point of operation.

    Attributes:
        tokens_per_step: reveal so many tokens in each step; or
        steps: take so many steps, front-loaded; or
        cosine: take so many steps on MaskGIT's schedule.
        block_length: semi-autoregressive blocks, if given.
        temperature: of the tokens; the sampler's own if ``None``.
        top_p: the nucleus tokens are drawn from; the sampler's own if ``None``.
        guidance: w of classifier-free guidance.

    Raises:
        ValueError: not exactly one budget, or a number outside its range.
    """

    tokens_per_step: int | None = None
    steps: int | None = None
    cosine: int | None = None
    block_length: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    guidance: float = 0.0

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a setting needs exactly one of {', '.join(BUDGETS)}, got {', '.join(given) or 0}"
            )
        for name in (*BUDGETS, "block_length"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.temperature is not None and not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and not negative, got {self.temperature}")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0.0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance must be finite and not negative, got {self.guidance}")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Setting:
        """The setting that :meth:`as_json` wrote.

        Raises:
            ValueError: an unknown field.
        """
        known = {field.name for field in fields(cls)}
        for name in content:
            if name not in known:
                raise ValueError(f"a setting has {', '.join(sorted(known))}, got {name!r}")
        return cls(**content)

    def as_json(self) -> dict[str, Any]:
        """The fields that are not at their defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }

    @property
    def budget_name(self) -> str:
        """Which of :data:`BUDGETS` is given."""
        return next(name for name in BUDGETS if getattr(self, name) is not None)

    @property
    def budget_size(self) -> int:
        """Its number."""
        size: int = getattr(self, self.budget_name)
        return size

    @property
    def budget(self) -> Budget:
        return BUDGETS[self.budget_name](self.budget_size)

    @property
    def apart_from_budget(self) -> Setting:
        """The same setting at one token per step: equal for all points of one curve."""
        changes: dict[str, Any] = dict.fromkeys(BUDGETS)
        return replace(self, **{**changes, "tokens_per_step": 1})

    @property
    def pace(self) -> str:
        """The budget in words."""
        words = {
            "tokens_per_step": f"{self.budget_size} per step",
            "steps": f"{self.budget_size} steps",
            "cosine": f"{self.budget_size} cosine steps",
        }
        return words[self.budget_name]

    def __str__(self) -> str:
        return ", ".join((self.pace, *self.extras()))

    def extras(self) -> list[str]:
        """What is said besides the budget, in words."""
        said = []
        if self.block_length is not None:
            said.append(f"blocks of {self.block_length}")
        if self.temperature is not None:
            said.append(f"temperature {self.temperature:g}")
        if self.top_p is not None:
            said.append(f"top-p {self.top_p:g}")
        if self.guidance:
            said.append(f"guidance {self.guidance:g}")
        return said
