"""A lookahead among the few best candidates, where an estimate hardly tells them apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from boe.samplers.step import Step, StepCost, ranked_order, top_positions
from boe.samplers.trying import expected_fall, likely_writes

_CHUNK = 64


class Decision(NamedTuple):
    """How a lookahead ranks what was close.

    Attributes:
        values: (B, P), float64: the estimates, but in rows that were decided the shortlist
            stands at its true expected falls, and the other candidates below it, in the order
            and at the distances of their estimates.
        shortlist: bool (B, P), what was tried out.
        cost: what trying took.
    """

    values: Tensor
    shortlist: Tensor
    cost: StepCost


def decide_close(
    step: Step,
    estimates: Tensor,
    candidates: Tensor,
    lookahead: int,
    close: float | None,
    tokens: int,
) -> Decision | None:
    """Try out the candidates that compete for the last reveal of the step.

    Of b positions to be revealed, the shortlist are the b − 1 + ``lookahead`` best by
    ``estimates`` (B, P), nats. A row is decided where the b-th estimate exceeds the next one by
    at most ``close`` (``None``: always). The writes are run against the frozen context of the
    step's forward.

    Returns:
        ``None`` where no row needs a decision.
    """
    estimates = estimates.double()
    competing = candidates.sum(dim=1)
    contested = (competing > step.budget) & (step.budget > 0)
    if close is not None:
        order = ranked_order(estimates, candidates)
        ranked = estimates.gather(1, order)
        last = (step.budget - 1).clamp_min(0).unsqueeze(1)
        following = (last + 1).clamp_max(ranked.shape[1] - 1)
        gap = ranked.gather(1, last) - ranked.gather(1, following)
        contested = contested & (gap.squeeze(1) <= close)
    shortlist = top_positions(estimates, candidates, step.budget - 1 + lookahead)
    shortlist = shortlist & contested.unsqueeze(1)
    if not bool(contested.any()):
        return None
    writes = likely_writes(step, shortlist, tokens)
    gain, cost = expected_fall(step, writes, "frozen", _CHUNK)
    lowest = gain.masked_fill(~shortlist, torch.inf).amin(dim=1, keepdim=True)
    rest = candidates & ~shortlist
    best_left = estimates.masked_fill(~rest, -torch.inf).amax(dim=1, keepdim=True)
    below = lowest - 1.0 + (estimates - best_left)
    values = torch.where(shortlist, gain, torch.where(rest, below, estimates))
    return Decision(torch.where(contested.unsqueeze(1), values, estimates), shortlist, cost)
