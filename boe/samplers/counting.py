"""How many positions a step reveals, decided row by row from the prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from boe.arguments import check_numbers
from boe.samplers.base import Count, Step, ranked_order, top_positions


@dataclass(frozen=True)
class EntropyBound(Count):
    """EB-Sampler (Ben-Hamu et al., 2025): as many as are nearly independent.

    Down the ranking, the largest prefix whose entropies satisfy
    Σ H − max H ≤ γ, which bounds the information that tokens written together ignore.
    Positions ranked at −∞ (no candidates of BoE) are not taken in.

    With ``along="entropy"`` the bound is used up by the surest positions, down the entropies
    as far as Σ H ≤ γ, and the sampler adds the one of its choice. For the entropy sampler
    that is the same; for another it keeps the number of steps that EB-Sampler is made for,
    and leaves to the sampler what is open: which of the unsure positions goes with the sure.

    Attributes:
        gamma: γ in nats; the paper's code has 0.1, its scripts 0.01.
        along: "ranking", the sampler's, as in the paper; or "entropy".
    """

    gamma: float = 0.1
    along: str = "ranking"

    name: ClassVar[str] = "eb"
    home: ClassVar[str] = "entropy"

    def __post_init__(self) -> None:
        check_numbers(self)
        if not (self.gamma >= 0.0 and math.isfinite(self.gamma)):
            raise ValueError(f"gamma must be finite and not negative, got {self.gamma}")
        if self.along not in ("ranking", "entropy"):
            raise ValueError(f"along must be 'ranking' or 'entropy', got {self.along!r}")

    @property
    def further(self) -> int:
        return int(self.along == "entropy")

    def ready(self, step: Step) -> Tensor | None:
        if self.along == "ranking":
            return None
        surest = -step.stats.entropy.double()
        order = ranked_order(surest, step.eligible)
        offered = step.eligible.gather(1, order)
        spent = -surest.gather(1, order).masked_fill(~offered, 0.0).cumsum(dim=1)
        number = (offered & (spent <= self.gamma)).long().cumprod(dim=1).sum(dim=1)
        return top_positions(surest, step.eligible, number)

    def enough(self, ready: Tensor, budget: Tensor) -> Tensor:
        return torch.zeros_like(ready, dtype=torch.bool)

    def extend(self, step: Step, values: Tensor, among: Tensor, least: Tensor) -> Tensor:
        if self.along == "entropy":
            return least
        order = ranked_order(values, among)
        entropy = step.stats.entropy.double().gather(1, order)
        offered = (among & (values > -torch.inf)).gather(1, order)
        entropy = entropy.masked_fill(~offered, 0.0)
        ignored = entropy.cumsum(dim=1) - entropy.cummax(dim=1).values
        within = offered & (ignored <= self.gamma)
        return torch.maximum(within.long().cumprod(dim=1).sum(dim=1), least)


@dataclass(frozen=True)
class Threshold(Count):
    """Fast-dLLM's parallel decoding (Wu et al., 2025): all tokens above a confidence.

    Where fewer than the budget are, the best-ranked others fill up: with confidence as
    the ranking, "all above the threshold, and always the best".
    """

    value: float = 0.9

    name: ClassVar[str] = "threshold"
    home: ClassVar[str] = "confidence"

    def __post_init__(self) -> None:
        check_numbers(self)
        if not 0.0 < self.value <= 1.0:
            raise ValueError(f"value must be in (0, 1], got {self.value}")

    def ready(self, step: Step) -> Tensor | None:
        return step.eligible & (step.proposal_probability >= self.value)


@dataclass(frozen=True)
class Factor(Count):
    """Fast-dLLM's factor rule (Wu et al., 2025).

    The n most confident tokens, n the largest number with c_(n) ≥ 1 − f/(n + 1), where c_(n)
    is the n-th largest confidence. With n = 1 the sampler chooses. (The authors' code
    also reveals the last token of a block unasked; that is not reproduced.)

    Attributes:
        factor: f.
    """

    factor: float = 1.0

    name: ClassVar[str] = "factor"
    home: ClassVar[str] = "confidence"

    def __post_init__(self) -> None:
        check_numbers(self)
        if not (self.factor > 0.0 and math.isfinite(self.factor)):
            raise ValueError(f"factor must be finite and above 0, got {self.factor}")

    def ready(self, step: Step) -> Tensor | None:
        confidence = step.proposal_probability
        order = ranked_order(confidence, step.eligible)
        ordered = confidence.gather(1, order)
        n = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
        passes = step.eligible.gather(1, order) & (ordered >= 1.0 - self.factor / (n + 1))
        passes[:, :1] = True
        number = passes.long().cumprod(dim=1).sum(dim=1)
        several = torch.where(number > 1, number, 0)
        return top_positions(confidence, step.eligible, several)


@dataclass(frozen=True)
class Klass(Count):
    """KLASS (Kim et al., 2025): confident tokens whose prediction has settled.

    Ready are positions whose confidence is above ``confidence`` and whose last ``history``
    divergences KL(p_now ‖ p_before) are all below ``divergence``, from the ``history``-th
    step of a block on. All ready ones are revealed; where there are none, the sampler
    chooses as many as the budget plans. Before the first step of a block p is 0, so its
    divergence is large and only two forwards later can anything be ready with the default
    history.

    Defaults are the authors' for LLaDA on GSM8K (blocks of 64); confidence/divergence on
    MATH .6/.01, HumanEval .9/.01, MBPP .7/.01. Keeps one distribution per masked position.
    """

    confidence: float = 0.6
    divergence: float = 0.015
    history: int = 2

    name: ClassVar[str] = "klass"
    home: ClassVar[str] = "confidence"

    def __post_init__(self) -> None:
        check_numbers(self)
        if not 0.0 <= self.confidence < 1.0:
            raise ValueError(f"confidence must be in [0, 1), got {self.confidence}")
        if not (self.divergence > 0.0 and math.isfinite(self.divergence)):
            raise ValueError(f"divergence must be finite and above 0, got {self.divergence}")
        if self.history < 1:
            raise ValueError(f"history must be at least 1, got {self.history}")

    def ready(self, step: Step) -> Tensor | None:
        divergence = self._divergence(step)
        settled = divergence < self.divergence
        # How many steps in a row each position has been settled, on the canvas.
        run = step.memory.on_canvas("klass.run", step.canvas, 0.0)
        streak = torch.where(settled, step.at_slots(run) + 1.0, 0.0)
        run = step.written(torch.zeros_like(run), step.masked, streak)
        step.memory.put("klass.run", run, 0.0)
        sure = step.proposal_probability > self.confidence
        return step.eligible & sure & (streak >= self.history)

    def enough(self, ready: Tensor, budget: Tensor) -> Tensor:
        return ready > 0

    def _divergence(self, step: Step) -> Tensor:
        """KL of each slot's prediction from that of the step before, float64 (B, P)."""
        p = step.prediction.logits.double().softmax(dim=-1)
        place = step.written(
            torch.full_like(step.canvas.ids, -1),
            step.masked,
            torch.arange(p.shape[1], device=p.device).expand_as(step.positions),
        )
        before, places = step.memory.get("klass.p"), step.memory.get("klass.place")
        # A row in the first step of a block has nothing to compare with.
        old = step.of_rows(lambda clock: clock.index > 0).bool()
        divergence = torch.full_like(step.stats.entropy, torch.inf, dtype=torch.float64)
        if before is not None and places is not None:
            slot = step.at_slots(_fit(places, step.canvas.length))
            old = old & (slot >= 0)
            batch = torch.arange(p.shape[0], device=p.device).unsqueeze(1)
            earlier = before[batch, slot.clamp_min(0)]
            kl = (p * ((p + 1e-12).log() - (earlier + 1e-12).log())).sum(dim=-1)
            divergence = torch.where(old, kl, divergence)
        step.memory.put("klass.p", p, 0.0)
        step.memory.put("klass.place", place, -1)
        return divergence


def _fit(places: Tensor, length: int) -> Tensor:
    """``places`` cut or padded to the canvas."""
    return torch.nn.functional.pad(places, (0, length - places.shape[1]), value=-1)
