"""Candidates: the few positions whose consequences are looked into."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from boe.samplers.base import Clock, Step, share_of, top_positions

CANDIDATE_RULES = ("confidence", "margin", "entropy", "entropy_band", "random", "all")


def check_candidates(rule: str, rho: float, tolerance: float | None) -> None:
    """Raises ValueError, naming the option, if one is not what it may be."""
    if rule not in CANDIDATE_RULES:
        raise ValueError(f"candidates must be one of {', '.join(CANDIDATE_RULES)}, got {rule!r}")
    if not 0.0 < rho <= 1.0:
        raise ValueError(f"rho must be in (0, 1], got {rho}")
    if tolerance is not None and not 0.0 <= tolerance <= 1.0:
        raise ValueError(f"tolerance must be in [0, 1], got {tolerance}")


def choose_candidates(step: Step, rule: str, rho: float, tolerance: float | None) -> Tensor:
    """bool (B, P): eligible positions, cut down by rank and by tolerance.

    Args:
        rule: how they are ranked: "confidence", "margin", "entropy" (lowest first),
            "entropy_band" (nearest to the median entropy), "random"; or "all" of them.
        rho: the share of the eligible positions that is taken, but never fewer than are
            revealed. Not used by "all".
        tolerance: by how much a candidate's top probability may fall short of the b-th
            largest one, where b positions are revealed; ``None`` for no such bound.
    """
    stats, competing = step.stats, step.eligible
    if tolerance is not None:
        competing = competing & (stats.top1 >= least_of_greedy(step).unsqueeze(1) - tolerance)
    if rule == "all":
        return competing
    if rule == "confidence":
        rank = stats.top1
    elif rule == "margin":
        rank = stats.top1 - stats.top2
    elif rule == "entropy":
        rank = -stats.entropy
    elif rule == "entropy_band":
        median = stats.entropy.masked_fill(~step.eligible, torch.nan).nanmedian(dim=1)
        rank = -(stats.entropy - median.values.unsqueeze(1)).abs()
    else:
        rank = step.uniform(step.masked)
    wanted = torch.maximum(share_of(step.eligible.sum(dim=1), rho), step.budget)
    return top_positions(rank, competing, wanted)


def may_compete(clock: Clock, rule: str, rho: float) -> bool:
    """Whether more candidates than are revealed may be found in a step, before its forward."""
    if rule == "all":
        return True
    return _most_of(clock.left, rho) > clock.change


@lru_cache(maxsize=4096)
def _most_of(eligible: int, rho: float) -> int:
    """As :func:`share_of`, on the host; asked again and again of the same few numbers."""
    return int(share_of(torch.tensor(eligible), rho))


def least_of_greedy(step: Step) -> Tensor:
    """(B,), the b-th largest top probability of eligible positions; +∞ where b is 0."""
    ranked = step.stats.top1.masked_fill(~step.eligible, -torch.inf)
    ranked = ranked.sort(dim=1, descending=True).values
    count = torch.minimum(step.budget, step.eligible.sum(dim=1))
    least = ranked.gather(1, (count - 1).clamp_min(0).unsqueeze(1)).squeeze(1)
    return torch.where(count > 0, least, torch.inf)
