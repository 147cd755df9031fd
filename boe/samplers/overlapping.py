"""How many positions a step reveals: as many as do not compete for the same tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from boe.denoisers.base import take_rows
from boe.samplers.base import Count, Step, ranked_order, top_positions
from boe.samplers.late_options import repr_of

# Probabilities held at once.
_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class OverlapBound(Count):
    """EB-Sampler's bound (Ben-Hamu et al., 2025) with an estimate in place of its worst case.

    Ours. Tokens written together ignore the information that their positions have about
    each other. EB-Sampler bounds it by Σ H − max H, as if every position told all about the
    others, so that of several unsure positions one is written at a time. But a pair tells
    little unless it competes for the same tokens. What position j ignores of the positions W
    that are taken before it is estimated by

        c_j = min(H_j, Σ_{i∈W} (s + (1 − s)·cos(p_i, p_j)) · min(H_i, H_j))   in nats,

    where min(H_i, H_j) bounds the mutual information of a pair, the cosine of the two
    predictions is 0 where they have no token in common and 1 where they are the same, and s
    is the share that a pair with none in common is charged. Positions are gone through from
    the lowest entropy up; one is taken if the sum of the costs stays at most γ, and passed
    over if not. The first costs nothing, so that every step reveals one at least; sure ones
    cost next to nothing.

    Where these are fewer than the budget, the ranking is asked for the others, or with
    ``fill="cost"`` the count goes on by itself, whatever it costs, one after the other: with
    the position of the least c_j + s·H_j. What is open is more likely to be wrong by itself,
    too, so it is charged for itself as for a pair with nothing in common.

    γ bounds what is lost by writing *together*. That a token is wrong by itself costs
    nothing there: where one answer is right and unsure tokens are mostly wrong, set ``floor``,
    or use ``threshold``.

    Attributes:
        gamma: γ in nats.
        share: s in [0, 1]; with 1 all pairs are charged alike. Less saves forwards where
            positions depend on each other by what they compete for, and only there.
        floor: least probability of the token that a position that joins the first would
            write, unless its token is due.
        early: what is due: the tokens that the plan wants written by this step, and this
            share of the next step's. What has to be written soon is better written beside
            what it does not compete with.
        fill: what a budget asks for beyond γ: "ranking" or "cost".
        slack: which position comes first of those that do not reach the floor, after those
            that do. ``None``: that of least entropy. A number s: of those whose tokens are
            wrong with at most 1 + s times the least probability, that of most entropy; of all
            with ``inf``. Where any of many tokens would do, what is open is best settled
            first, for what depends on it is then known; where one answer is right, last.
    """

    gamma: float = 0.1
    share: float = 0.2
    floor: float = 0.0
    early: float = 1.0
    fill: str = "ranking"
    slack: float | None = None

    name: ClassVar[str] = "overlap"
    home: ClassVar[str] = "entropy"

    def __post_init__(self) -> None:
        if not (self.gamma >= 0.0 and math.isfinite(self.gamma)):
            raise ValueError(f"gamma must be finite and not negative, got {self.gamma}")
        for field in ("share", "floor", "early"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ValueError(f"{field} must be in [0, 1], got {getattr(self, field)}")
        if self.fill not in ("ranking", "cost"):
            raise ValueError(f"fill must be 'ranking' or 'cost', got {self.fill!r}")
        if self.slack is not None and not self.slack >= 0.0:
            raise ValueError(f"slack must not be negative, got {self.slack}")
        if self.slack is not None and self.floor == 0.0:
            raise ValueError("slack needs a floor above 0: without one every position reaches it")

    def __repr__(self) -> str:
        return repr_of(self, ("fill", "slack"))

    @property
    def fills(self) -> bool:
        return self.fill == "cost"

    def ready(self, step: Step) -> Tensor | None:
        entropy = step.stats.entropy.double()
        # Eligible positions come first, and no row has more of them.
        longest = max((clock.left for clock in step.clocks), default=0)
        order = ranked_order(self._precedence(step, entropy), step.eligible)
        order = order[:, : max(longest, 1)]
        offered = step.eligible.gather(1, order)
        sure = step.proposal_probability.gather(1, order) >= self.floor
        entropy = entropy.gather(1, order).masked_fill(~offered, 0.0)
        shared = self._shared_information(step.prediction.logits, order, entropy)
        taken = offered.clone()
        taken[:, 1:] = False
        number = torch.ones_like(step.budget)
        due = step.of_rows(lambda clock: clock.due(self.early)).squeeze(1)
        wanted = torch.maximum(due, step.budget)
        spent = torch.zeros_like(entropy[:, 0])
        ignored = shared[:, 0].clone()
        # A position's cost depends on which were taken before it, so they go one by one.
        for place in range(1, order.shape[1]):
            cost = torch.minimum(entropy[:, place], ignored[:, place])
            joins = offered[:, place] & (sure[:, place] | (number < wanted))
            fits = joins & (spent + cost <= self.gamma)
            taken[:, place] = fits
            number = number + fits
            spent = spent + torch.where(fits, cost, 0.0)
            ignored = ignored + torch.where(fits.unsqueeze(1), shared[:, place], 0.0)
        if self.fills:
            short = torch.minimum(step.budget, offered.sum(dim=1)) - number
            taken = self._filled(taken, offered, short, entropy, shared, ignored)
        return torch.zeros_like(step.eligible).scatter(1, order, taken)

    def _precedence(self, step: Step, entropy: Tensor) -> Tensor:
        """In which order positions are gone through, from the largest down, (B, P)."""
        if self.slack is None:
            return -entropy
        sure = step.proposal_probability >= self.floor
        unsure = step.eligible & ~sure
        wrong = (1.0 - step.proposal_probability.double()).masked_fill(~unsure, torch.inf)
        close = unsure & (wrong <= (1.0 + self.slack) * wrong.amin(dim=1, keepdim=True))
        first = top_positions(entropy, close, torch.ones_like(step.budget))
        # The sure ones, the first of the others, the rest.
        above = 1.0 + entropy.masked_fill(~step.eligible, 0.0).amax(dim=1, keepdim=True)
        return torch.where(sure, 2.0 * above - entropy, torch.where(first, above, -entropy))

    def _shared_information(self, logits: Tensor, order: Tensor, entropy: Tensor) -> Tensor:
        """What each pair of slots is charged, float64 (B, P, P) in ``order``, nats.

        Args:
            logits: (B, P, V).
            order: int64 (B, P), slots from the lowest entropy up.
            entropy: float64 (B, P), in that order, 0 at slots that do not count.
        """
        cosines = []
        # So many sequences at a time: probabilities of a whole batch may not fit.
        size = max(1, _ELEMENTS // max(1, order.shape[1] * logits.shape[2]))
        for part, slots in zip(logits.split(size), order.split(size), strict=True):
            p = take_rows(part, slots).float().softmax(dim=-1)
            p /= p.norm(dim=-1, keepdim=True)
            cosines.append(p @ p.mT)
        share = self.share + (1.0 - self.share) * torch.cat(cosines).double()
        return share * torch.minimum(entropy.unsqueeze(1), entropy.unsqueeze(2))

    def _filled(
        self,
        taken: Tensor,
        offered: Tensor,
        short: Tensor,
        entropy: Tensor,
        shared: Tensor,
        ignored: Tensor,
    ) -> Tensor:
        """``taken`` (B, P) and, one after the other, the ``short`` (B,) cheapest others."""
        for _ in range(int(short.amax())):
            cost = torch.minimum(entropy, ignored) + self.share * entropy
            cheapest = cost.masked_fill(taken | ~offered, torch.inf).argmin(dim=1, keepdim=True)
            joins = (short > 0).unsqueeze(1)
            taken = taken | torch.zeros_like(taken).scatter(1, cheapest, joins)
            added = shared.gather(1, cheapest.unsqueeze(2).expand(-1, -1, shared.shape[2]))
            ignored = ignored + torch.where(joins, added.squeeze(1), 0.0)
            short = short - 1
        return taken
