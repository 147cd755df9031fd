"""How many positions a step reveals: as many as do not compete for the same tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boe.arguments import check_numbers
from boe.denoisers.base import take_rows
from boe.samplers.base import Count, Step, ranked_order, top_positions
from boe.samplers.late_options import repr_of

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

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
        check_numbers(self)
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
        due = step.of_rows(lambda clock: clock.due(self.early)).squeeze(1)
        # One after the other, since a cost depends on what was taken before: dozens of the
        # smallest operations, which numpy starts in a fraction of the time.
        places = _Places(*(_on_host(x) for x in (offered, sure, entropy, shared)))
        budget = _on_host(step.budget)
        places.take_within(self.gamma, np.maximum(_on_host(due), budget))
        if self.fills:
            places.fill_up(np.minimum(budget, places.offered.sum(axis=1)), self.share)
        taken = torch.from_numpy(places.taken).to(order.device)
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


class _Places:
    """Positions in the order in which they are gone through, and which are taken.

    Args:
        offered, sure: bool (B, P).
        entropy: float64 (B, P).
        shared: float64 (B, P, P), what each pair is charged.
    """

    def __init__(
        self, offered: BoolArray, sure: BoolArray, entropy: FloatArray, shared: FloatArray
    ) -> None:
        self.offered, self.sure = offered, sure
        self.entropy, self.shared = entropy, shared
        self.taken = np.zeros_like(offered)
        self.taken[:, 0] = offered[:, 0]
        # What each ignores of those that are taken, before it is held to its own entropy.
        self.ignored = shared[:, 0].copy()

    def take_within(self, gamma: float, wanted: FloatArray) -> None:
        """Take what costs at most ``gamma`` together: what is sure, and the first ``wanted``."""
        number = np.ones(len(self.taken), dtype=np.int64)
        spent = np.zeros(len(self.taken))
        for place in range(1, self.taken.shape[1]):
            cost = np.minimum(self.entropy[:, place], self.ignored[:, place])
            joins = self.offered[:, place] & (self.sure[:, place] | (number < wanted))
            fits = joins & (spent + cost <= gamma)
            if fits.any():
                self.taken[:, place] = fits
                number += fits
                spent += np.where(fits, cost, 0.0)
                self.ignored[fits] += self.shared[fits, place]

    def fill_up(self, wanted: IntArray, share: float) -> None:
        """Take the cheapest others, one after the other, until ``wanted`` (B,) are taken."""
        while True:
            rows = np.flatnonzero(self.taken.sum(axis=1) < wanted)
            if not len(rows):
                return
            entropy = self.entropy[rows]
            cost = np.minimum(entropy, self.ignored[rows]) + share * entropy
            cost[self.taken[rows] | ~self.offered[rows]] = np.inf
            cheapest = cost.argmin(axis=1)
            self.taken[rows, cheapest] = True
            self.ignored[rows] += self.shared[rows, cheapest]


def _on_host(x: Tensor) -> Any:
    return x.cpu().numpy()
