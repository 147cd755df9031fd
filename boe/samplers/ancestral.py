"""Ancestral samplers: the reverse process of a masked diffusion model, step by step.

Time runs from t = 1 (all masked) to 0; α_t is the chance that a token is not yet masked
at t. A step from t to s < t decides for every position by itself: a masked one is revealed
with some chance, its token drawn from the prediction; an observed one may be masked again.
Since a prediction sums to 1 over the tokens, drawing whether and drawing what are
independent, and together are one draw from the transition kernel. Chances are clamped to
[0, 1]: weights of a categorical draw that come out negative count as 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from boe.arguments import check_numbers
from boe.samplers.base import Clock, Move, Policy, Scores, Step
from boe.samplers.remdm import Renoise

Times = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Ancestral(Policy):
    """MDLM's ancestral sampler (Sahoo et al., 2024), and with a remasking rule ReMDM's.

    With log-linear noise, α_t = 1 − t, and T steps from 1 to ``end``. A masked position is
    revealed with chance (α_s − (1 − σ)·α_t)/(1 − α_t), an observed one masked with chance
    σ; σ = 0 without a remasking rule (:mod:`boe.samplers.remdm`). Masks that are left at
    ``end`` get their argmax in one forward more. A step that changes nothing costs no
    forward in the next (the authors' cache), so ``nfe_forward`` may be below ``steps``,
    the authors' count.

    Attributes:
        steps: T per block; as many steps as the budget plans if ``None``. The authors
            use 1024 for as many tokens.
        end: the time at which the process is cut off.
    """

    steps: int | None = None
    end: float = 1e-5

    name: ClassVar[str] = "mdlm"
    temperature: ClassVar[float] = 1.0
    stochastic: ClassVar[bool] = True
    reuses: ClassVar[bool] = True
    renoises: ClassVar[bool] = True
    """Whether a remasking rule may be added."""
    samples_last: ClassVar[bool] = False
    """Whether the last masks get a draw instead of the argmax."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0.0 < self.end < 1.0:
            raise ValueError(f"end must be in (0, 1), got {self.end}")

    def duration(self, plan: tuple[int, ...]) -> int:
        return len(self.times(self.steps or len(plan)))

    def times(self, steps: int) -> Times:
        """(t, s) of every step."""
        width = (1.0 - self.end) / steps
        return tuple((1.0 - k * width, 1.0 - (k + 1) * width) for k in range(steps))

    def alphas(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return 1.0 - t, 1.0 - s

    def move(self, step: Step) -> Move:
        return self.transition(step, None)

    def transition(self, step: Step, remask: Renoise | None) -> Move:
        """Draw the canvas at s from the one at t."""
        last = step.of_rows(lambda clock: clock.index >= clock.total).bool()
        t, s = self._times_of(step)
        chance, sigma = self.chances(step, t, s, remask)
        chance = torch.where(last, 1.0, chance).expand(step.masked.shape)
        reveal = step.eligible & (step.uniform(step.eligible) < chance)
        tokens = step.proposal
        if not self.samples_last:
            tokens = torch.where(last, step.stats.argmax, tokens)
        taken = None
        if sigma is not None:
            taken = step.observed & (step.uniform(step.observed) < sigma) & ~last
        move = Move(reveal, tokens, Scores(chance), taken)
        if remask is not None:
            remask.remember(step, move)
        return move

    def chances(
        self, step: Step, t: Tensor, s: Tensor, remask: Renoise | None
    ) -> tuple[Tensor, Tensor | None]:
        """Chances of being revealed, (B, P) or (B, 1), and masked again, (B, L) or (B, 1)."""
        if remask is None:
            alpha_t, alpha_s = self.alphas(t, s)
            return ((alpha_s - alpha_t) / (1.0 - alpha_t)).clamp(0.0, 1.0), None
        alpha_t, alpha_s = remask.alphas(t, s)
        sigma = remask.sigma(step, alpha_t, alpha_s)
        here = step.at_slots(sigma) if sigma.shape[1] > 1 else sigma
        chance = (alpha_s - (1.0 - here) * alpha_t) / (1.0 - alpha_t)
        return chance.clamp(0.0, 1.0), sigma

    def _times_of(self, step: Step) -> tuple[Tensor, Tensor]:
        """t and s of this step, (B, 1); both of the last step where the grid is used up."""

        def at(clock: Clock) -> tuple[float, float]:
            grid = self.times(self.steps or clock.planned)
            return grid[min(clock.index, len(grid) - 1)]

        return step.of_rows(lambda c: at(c)[0]), step.of_rows(lambda c: at(c)[1])


@dataclass(frozen=True)
class SEDD(Ancestral):
    """SEDD's analytic (Tweedie) sampler (Lou et al., 2024) on the absorbing graph.

    σ(t) = −ln(1 − (1 − ``floor``)·t). With the score s_v of token v, a masked position
    becomes v with chance s_v·(e^{σ(t) − σ(s)} − 1) and observed ones stay. A denoiser's
    prediction p gives the score p_v/(e^{σ(t)} − 1), which makes this MDLM's kernel at
    α = e^{−σ}. The last masks are drawn, not given their argmax.
    """

    floor: float = 1e-3

    name: ClassVar[str] = "sedd"
    renoises: ClassVar[bool] = False
    samples_last: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.floor < 1.0:
            raise ValueError(f"floor must be in (0, 1), got {self.floor}")

    def alphas(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return 1.0 - (1.0 - self.floor) * t, 1.0 - (1.0 - self.floor) * s


@dataclass(frozen=True)
class DFM(Ancestral):
    """The discrete-flow-matching corrector (Gat et al., 2024), as ReMDM's authors run it.

    With a_t = 10·t^¼·(1 − t)^¼ + 1 and b_t = a_t − 1, a masked position is revealed with
    chance a_t·(α_s − α_t)/(1 − α_t) and an observed one masked with chance
    b_t·(α_s/α_t − 1). Steps have width min(1/T, 1/(a_t/t + b_t/(1 − t))), the first one
    1/T (where b_t = 0: MDLM's kernel), and end when t is no longer than the last width.
    So there are more than T of them: 268 for T = 256, but also 49 for T = 4, since near both
    ends of time the corrector allows short steps only. It has no ``end``.
    """

    name: ClassVar[str] = "dfm"
    takes_back: ClassVar[bool] = True
    renoises: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end != Ancestral.end:
            raise ValueError(f"end must be left out: dfm ends by its steps, got {self.end}")

    def times(self, steps: int) -> Times:
        return _corrector_times(steps)

    def chances(
        self, step: Step, t: Tensor, s: Tensor, remask: Renoise | None
    ) -> tuple[Tensor, Tensor | None]:
        alpha_t, alpha_s = self.alphas(t, s)
        forward = _corrector_rate(t)
        reveal = forward * (alpha_s - alpha_t) / (1.0 - alpha_t)
        # At t = 1 nothing is observed and the backward rate is 0.
        ratio = torch.where(alpha_t > 0, alpha_s / alpha_t.clamp_min(1e-300) - 1.0, 0.0)
        return reveal.clamp(0.0, 1.0), ((forward - 1.0) * ratio).clamp(0.0, 1.0)


def _corrector_rate(t: Tensor) -> Tensor:
    return 10.0 * (t * (1.0 - t)).clamp_min(0.0) ** 0.25 + 1.0


@lru_cache(maxsize=64)
def _corrector_times(steps: int) -> Times:
    width = 1.0 / steps
    grid, t = [(1.0, 1.0 - width)], 1.0 - width
    while t > width:
        forward = 10.0 * (t * (1.0 - t)) ** 0.25 + 1.0
        width = min(1.0 / steps, 1.0 / (forward / t + (forward - 1.0) / (1.0 - t)))
        grid.append((t, t - width))
        t -= width
    return tuple(grid)
