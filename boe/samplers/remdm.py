"""ReMDM's remasking rules (Wang et al., 2025): how likely a written token is taken back.

With an ancestral sampler t and s are the process's times. With a ranking sampler t is the
share of the block's masks that are left before the step, s the share after it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from boe.arguments import check_numbers
from boe.samplers.base import Move, Remask, Step


class Renoise(Remask):
    """A rule that masks every observed position with some chance σ, each by itself."""

    home: ClassVar[str] = "mdlm"

    def alphas(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and α_s, each (B, 1): log-linear noise, unless the rule bends time."""
        return 1.0 - t, 1.0 - s

    @abstractmethod
    def sigma(self, step: Step, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """σ, float64 (B, 1), or (B, L) if it differs between positions."""

    def pick(self, step: Step) -> Tensor:
        t = step.of_rows(lambda c: c.left / c.masks)
        s = step.of_rows(lambda c: (c.left - max(c.change, 0)) / c.masks)
        return step.uniform(step.observed) < self.sigma(step, *self.alphas(t, s))


def _largest_sigma(alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """min(1, (1 − α_s)/α_t), the largest σ for which the process keeps its marginals."""
    ratio = (1.0 - alpha_s) / alpha_t.clamp_min(torch.finfo(alpha_t.dtype).tiny)
    return torch.where(alpha_t > 0, ratio.clamp_max(1.0), 1.0)


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


@dataclass(frozen=True)
class RemdmCap(Renoise):
    """σ = min(η, (1 − α_s)/α_t)."""

    eta: float = 0.008

    name: ClassVar[str] = "remdm-cap"

    def __post_init__(self) -> None:
        check_numbers(self)
        _check_share("eta", self.eta)

    def sigma(self, step: Step, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        return _largest_sigma(alpha_t, alpha_s).clamp_max(self.eta)


@dataclass(frozen=True)
class RemdmRescale(Renoise):
    """σ = η·min(1, (1 − α_s)/α_t)."""

    eta: float = 0.015

    name: ClassVar[str] = "remdm-rescale"

    def __post_init__(self) -> None:
        check_numbers(self)
        _check_share("eta", self.eta)

    def sigma(self, step: Step, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        return self.eta * _largest_sigma(alpha_t, alpha_s)


@dataclass(frozen=True)
class RemdmConf(Renoise):
    """Tokens that were unsure when they were revealed are the likelier to go.

    σ_i = softmax_i(ψ)·min(1, (1 − α_s)/α_t) over the observed tokens of the block, with
    ψ_i = −(probability of token i in the distribution it was drawn from). Masked
    positions have σ = 0. (The authors keep ψ in bfloat16; here it is float64.)
    """

    name: ClassVar[str] = "remdm-conf"

    def sigma(self, step: Step, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        psi = step.memory.on_canvas(self.name, step.canvas, -torch.inf)
        share = psi.masked_fill(~step.observed, -torch.inf).softmax(dim=1)
        # Where nothing is observed yet, the softmax of nothing is NaN.
        return share.nan_to_num(0.0) * _largest_sigma(alpha_t, alpha_s)

    def remember(self, step: Step, move: Move) -> None:
        psi = step.memory.on_canvas(self.name, step.canvas, -torch.inf)
        psi = step.written(psi, move.reveal, -step.drawn_probability.to(psi.dtype))
        if move.remask is not None:
            psi = psi.masked_fill(move.remask, -torch.inf)
        step.memory.put(self.name, psi, -torch.inf)


@dataclass(frozen=True)
class RemdmLoop(Renoise):
    """Remasking in the middle of time only, at a frozen α.

    t > ``t_on``: MDLM up to α = ``alpha_on``. Between: σ = η while α stays. t ≤ ``t_off``:
    MDLM for the rest.
    """

    eta: float = 0.02
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    name: ClassVar[str] = "remdm-loop"

    def __post_init__(self) -> None:
        check_numbers(self)
        _check_share("eta", self.eta)
        if not 0.0 < self.t_off < self.t_on < 1.0:
            raise ValueError(
                f"t_off and t_on must be 0 < t_off < t_on < 1, got {self.t_off} and {self.t_on}"
            )
        if not 0.0 < self.alpha_on < 1.0:
            raise ValueError(f"alpha_on must be in (0, 1), got {self.alpha_on}")

    def alphas(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return self._alpha(t, t), self._alpha(s, t)

    def _alpha(self, time: Tensor, t: Tensor) -> Tensor:
        """α at ``time`` in the regime of t."""
        before = (1.0 - time) * self.alpha_on / (1.0 - self.t_on)
        after = 1.0 - time * (1.0 - self.alpha_on) / self.t_off
        late = torch.where(t <= self.t_off, after, self.alpha_on)
        return torch.where(t > self.t_on, before, late)

    def sigma(self, step: Step, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        # Only between t_on and t_off does α stand still.
        held = (alpha_t == self.alpha_on) & (alpha_s == self.alpha_on)
        return torch.where(held, self.eta, 0.0).to(alpha_t.dtype)


@dataclass(frozen=True)
class ForwardBackward(Renoise):
    """The forward-backward corrector (Campbell et al., 2022), as ReMDM's authors run it.

    σ = (α_s − α_t)/α_t, and 1 at α_t = 0: each step takes back, on average, as many tokens
    as the plain process would add, and reveals twice as many.
    """

    name: ClassVar[str] = "fb"

    def sigma(self, step: Step, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        ratio = (alpha_s - alpha_t) / alpha_t.clamp_min(torch.finfo(alpha_t.dtype).tiny)
        return torch.where(alpha_t > 0, ratio, 1.0).clamp(0.0, 1.0)
