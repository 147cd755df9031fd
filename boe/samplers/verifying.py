"""Writes that a task's own rule shows to be wrong wait until nothing else is left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.samplers.rules import Ruled
from boe.samplers.step import Move, Step, ranked_order


@dataclass(frozen=True)
class Verifier(Ruled):
    """Reveal no token that breaks the task's rule while there is another one to reveal.

    Ours, for the open question of the TABES paper about verifier signals. The positions of a
    move are gone through in the order of the ranking, and each is written on trial, beside
    those that were accepted before it: tokens written together must agree too. What breaks the
    rule is not revealed. Where fewer than the budget are left, the next positions in the
    ranking are tried; where nothing else can be revealed, what the rule rejects is. A canvas
    that is broken already is left to the ranking. Costs no forward. It sees what no other
    sampler here sees: compare it with others that have it.
    """

    name: ClassVar[str] = "verified"

    def allow(self, step: Step, move: Move) -> Move:
        """``move`` with what the rule leaves of it.

        Raises:
            ValueError: there is no rule.
        """
        violated = self.checked()
        ids, lengths, eligible = step.canvas.ids, step.canvas.lengths, step.eligible
        unbroken = ~violated(step.canvas)
        order = _order(step, move)
        least = torch.minimum(step.budget, eligible.sum(dim=1))
        taken = torch.zeros_like(move.reveal)
        for place in range(order.shape[1]):
            slot = order[:, place : place + 1]
            asked = move.reveal.gather(1, slot) | (taken.sum(dim=1) < least).unsqueeze(1)
            asked = asked & eligible.gather(1, slot) & unbroken.unsqueeze(1)
            # Places further down are asked only where this one is.
            if not bool(asked.any()):
                break
            position, token = step.positions.gather(1, slot), move.tokens.gather(1, slot)
            # Padding's position is −1, and never asked.
            at = position.clamp_min(0)
            tried = ids.scatter(1, at, torch.where(asked, token, ids.gather(1, at)))
            fits = asked & ~violated(Canvas(tried, lengths)).unsqueeze(1)
            ids = torch.where(fits, tried, ids)
            taken = taken.scatter(1, slot, fits)
        # Where the rule rejects too many, the best-ranked of them are revealed all the same.
        rest = eligible & ~taken
        missing = (least - taken.sum(dim=1)).clamp_min(0).unsqueeze(1)
        sequence = rest.gather(1, order)
        fill = sequence & (sequence.cumsum(dim=1) <= missing)
        reveal = taken | torch.zeros_like(taken).scatter(1, order, fill)
        reveal = torch.where(unbroken.unsqueeze(1), reveal, move.reveal)
        parts = {**move.scores.parts, "rejected": move.reveal & ~reveal}
        return replace(move, reveal=reveal, scores=replace(move.scores, parts=parts))


def _order(step: Step, move: Move) -> Tensor:
    """int64 (B, P): what the move reveals, then what it could, the best-ranked first.

    Positions of equal score, as ready ones are, go by their probability.
    """
    late = step.delayed if step.delayed is not None else torch.zeros_like(move.reveal)
    order = ranked_order(step.stats.top1, step.eligible)
    for key in (move.scores.values, -late.to(step.stats.top1.dtype), move.reveal.to(torch.float32)):
        ordered = key.gather(1, order)
        offered = step.eligible.gather(1, order)
        order = order.gather(1, ranked_order(ordered, offered))
    return order
