"""Lookahead: the one-step entropy itself, by trying each candidate out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from boe.arguments import check_numbers
from boe.denoisers.base import CONTEXTS, Context, Keep
from boe.samplers.base import Sampler, Scores, Step, StepCost, top_positions
from boe.samplers.candidates import check_candidates, choose_candidates
from boe.samplers.late_options import repr_of
from boe.samplers.trying import Fall, expected_fall, likely_writes


@dataclass(frozen=True)
class Lookahead(Sampler):
    """Reveal what leaves the least entropy behind, tried out candidate by candidate.

    The score of candidate i is the fall of Σ H over the masked positions other than i when
    i is written: what BoE estimates from one backward, found by |C| forwards (or
    ``tokens`` × |C|). Several positions revealed together are ranked one by one.

    Attributes:
        candidates, rho, tolerance: as in :class:`boe.samplers.BoE`; no tolerance by
            default.
        tokens: how many tokens are tried at each candidate: with 1 the one that would be
            written, otherwise the most probable ones, weighted by their probabilities.
        chunk: how many canvases a forward holds at most.
        context: "full": a forward of the whole canvas for each. "frozen": only the masked
            rows, the written one among them, are run again, |M|/L of a forward; the other rows
            keep the keys and values of the step's forward, as in BoE's replay
            (docs/method.md). Needs a model that can be run on some of its rows.
        joint: of several reveals in a step take first the candidate whose token is most
            probable, then one after another those that leave the least entropy beside what
            was taken before them: lookahead over as many writes as the step makes. What
            repeats another pick gains nothing, and what contradicts it leaves more entropy
            than it found. Tries each candidate again for every reveal but the first, and none
            where the step reveals one.
    """

    candidates: str = "confidence"
    rho: float = 0.25
    tolerance: float | None = None
    tokens: int = 1
    chunk: int = 64
    context: Context = "full"
    joint: bool = False

    name: ClassVar[str] = "lookahead"

    def __repr__(self) -> str:
        return repr_of(self, ("context", "joint"))

    def __post_init__(self) -> None:
        check_numbers(self)
        check_candidates(self.candidates, self.rho, self.tolerance)
        for field in ("tokens", "chunk"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.context not in CONTEXTS:
            raise ValueError(f"context must be one of {', '.join(CONTEXTS)}, got {self.context!r}")

    @property
    def keep(self) -> Keep:
        return "keys_values" if self.context == "frozen" else "nothing"

    @property
    def combines(self) -> bool:
        return self.context == "frozen"

    def score(self, step: Step) -> Scores:
        chosen = choose_candidates(step, self.candidates, self.rho, self.tolerance)
        unsteered = torch.where(chosen, step.stats.top1, -torch.inf)
        # A row looks ahead where it has a choice, and something to look at.
        others = step.masked.sum(dim=1) > 1
        steered = (chosen.sum(dim=1) > step.budget) & others
        chosen = chosen & steered.unsqueeze(1)
        if not bool(steered.any()):
            return Scores(unsteered)
        if self.joint:
            gain, cost = self._picked_together(step, chosen)
        else:
            writes = likely_writes(step, chosen, self.tokens)
            gain, cost = expected_fall(step, writes, self.context, self.chunk)
        values = torch.where(chosen, gain, -torch.inf)
        values = torch.where(steered.unsqueeze(1), values, unsteered.to(values.dtype))
        return Scores(values, {"gain": gain, "candidate": chosen}, cost, scored=steered)

    def _picked_together(self, step: Step, chosen: Tensor) -> Fall:
        """As the gains of candidates (B, P), those of the last round of picks; the picks stand
        above all others, in their order."""
        ids, left = step.canvas.ids, chosen
        gain = torch.zeros_like(step.stats.entropy, dtype=torch.float64)
        cost = StepCost.of_forwards(torch.zeros_like(step.budget))
        picks = torch.zeros_like(gain)
        for place in range(int(step.budget.max())):
            due = left & (step.budget > place).unsqueeze(1)
            if place == 0:
                best = top_positions(step.proposal_probability, due, torch.ones_like(step.budget))
            else:
                writes = likely_writes(step, due, self.tokens)
                found, spent = expected_fall(step, writes, self.context, self.chunk, ids)
                gain, cost = torch.where(due, found, gain), cost + spent
                best = top_positions(gain, due, torch.ones_like(step.budget))
            left = left & ~best
            picks = torch.where(best, (step.budget - place).unsqueeze(1).double(), picks)
            ids = step.written(ids, best, step.proposal)
        highest = gain.masked_fill(~chosen, -torch.inf).amax(dim=1, keepdim=True)
        return Fall(torch.where(picks > 0, highest + picks, gain), cost)
