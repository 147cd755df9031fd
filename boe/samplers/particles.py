"""Several trajectories per sequence, of which the likelier ones are multiplied.

Particles are decoded by any policy, each with its own random draws. The run is in
:mod:`boe.decoding.smc` and
:mod:`boe.decoding.particle_gibbs`.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from boe.arguments import check_numbers, check_whole

RewardFn = Callable[[Tensor], Tensor]
"""Rewards, floating (N,), of N completed sequences of one item, int64 (N, L)."""

POTENTIALS = ("likelihood", "certainty")
ANSWERS = ("sample", "best")


class Particles(ABC):
    """A rule for resampling particles.

    Attributes:
        home: the policy that it goes with when a spec string names none.
    """

    name: ClassVar[str]
    home: ClassVar[str]
    particles: int
    every: int | None


@dataclass(frozen=True)
class SMC(Particles):
    """Sequential Monte Carlo without a reward.

    "likelihood" is self-rewarding SMC (Luo et al., 2026): a particle's log-weight is the
    sum of the log-probabilities of the tokens it revealed. "certainty" is LookUM's: minus
    the mean entropy of its masked positions over ``temperature``, afresh every time (one
    forward, which the next step reuses). At the end of each block, or every ``every``
    steps, particles are drawn anew in proportion to their weights if the effective number
    of particles (Σw)²/Σw² is below ``ess`` of their number. The answer is the particle
    whose tokens had the largest likelihood along its way.

    Attributes:
        particles: N, decoded at N times the cost.
        every: steps between resamplings; at block ends if ``None``.
        ess: 1 resamples whenever weights differ.
        carry: whether a copy keeps its ancestor's weight, as in the authors' code, less
            the mean; or all start anew from equal weights, as SMC theory has it.
    """

    particles: int = 4
    every: int | None = None
    potential: str = "likelihood"
    temperature: float = 1.0
    ess: float = 0.5
    carry: bool = True

    name: ClassVar[str] = "smc"
    home: ClassVar[str] = "confidence"

    def __post_init__(self) -> None:
        check_numbers(self)
        check_whole("particles", self.particles, 2)
        if self.every is not None:
            check_whole("every", self.every)
        if self.potential not in POTENTIALS:
            raise ValueError(
                f"potential must be one of {', '.join(POTENTIALS)}, got {self.potential!r}"
            )
        if not (self.temperature > 0.0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be finite and above 0, got {self.temperature}")
        if not 0.0 <= self.ess <= 1.0:
            raise ValueError(f"ess must be in [0, 1], got {self.ess}")


@dataclass(frozen=True)
class ParticleGibbs(Particles):
    """Particle Gibbs towards a reward (Dang et al., 2025, arXiv 2507.08390).

    Sweep by sweep, ``particles`` trajectories are decoded; every ``every`` steps they are
    drawn anew with weights exp((r̂ − r̂ at the last resampling)/``beta``), where r̂ is the
    reward of the sequence completed by the argmax of the current prediction, or the mean
    over ``completions`` draws from it. One trajectory of a sweep is kept for the next,
    in which it takes part unchanged (conditional SMC) and costs nothing. One sweep is
    plain reward-guided SMC. Forwards for completions are those of the next steps.

    The paper's settings for ``every`` and ``beta`` differ by task; the defaults are ours.

    Attributes:
        reward_fn: see :data:`RewardFn`; larger is better.
        sweeps, particles: m and k.
        answer: the sequence of the last kept trajectory ("sample", as in the paper), or
            the one of the largest reward among all that were completed ("best").
    """

    reward_fn: RewardFn | None = None
    particles: int = 4
    sweeps: int = 2
    every: int | None = 5
    beta: float = 1.0
    completions: int = 1
    answer: str = "sample"

    name: ClassVar[str] = "gibbs"
    home: ClassVar[str] = "mdlm"

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.reward_fn is None:
            raise ValueError("reward_fn must be given: a function from sequences to rewards")
        check_whole("particles", self.particles, 2)
        for field in ("sweeps", "every", "completions"):
            if getattr(self, field) is not None:
                check_whole(field, getattr(self, field))
        if not (self.beta > 0.0 and math.isfinite(self.beta)):
            raise ValueError(f"beta must be finite and above 0, got {self.beta}")
        if self.answer not in ANSWERS:
            raise ValueError(f"answer must be one of {', '.join(ANSWERS)}, got {self.answer!r}")
