"""The greedy samplers: each reveals what its local measure ranks first.

Confidence: MaskGIT (Chang et al., 2022) and LLaDA's ``low_confidence``. Margin: Kim et
al., 2025. Entropy: Koh et al., 2024; Dream.
"""

from __future__ import annotations

from dataclasses import dataclass

from boe.samplers.base import Sampler, Scores, Step


@dataclass(frozen=True)
class Confidence(Sampler):
    """The probability of the token that would be written."""

    name = "confidence"

    def score(self, step: Step) -> Scores:
        return Scores(step.proposal_probability)


@dataclass(frozen=True)
class Margin(Sampler):
    """The largest minus the second largest probability."""

    name = "margin"

    def score(self, step: Step) -> Scores:
        return Scores(step.stats.top1 - step.stats.top2)


@dataclass(frozen=True)
class Entropy(Sampler):
    """The negative entropy of the prediction."""

    name = "entropy"

    def score(self, step: Step) -> Scores:
        return Scores(-step.stats.entropy)


@dataclass(frozen=True)
class Random(Sampler):
    """A uniformly random order: ancestral sampling of a masked diffusion model."""

    name = "random"

    def score(self, step: Step) -> Scores:
        return Scores(step.uniform(step.masked))
