"""Naive lookahead: the exact one-step entropy, by a forward per candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from boe.samplers.base import Sampler, Scores, Step, StepCost
from boe.samplers.candidates import check_candidates, choose_candidates


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
    """

    candidates: str = "confidence"
    rho: float = 0.25
    tolerance: float | None = None
    tokens: int = 1
    chunk: int = 64

    name: ClassVar[str] = "lookahead"

    def __post_init__(self) -> None:
        check_candidates(self.candidates, self.rho, self.tolerance)
        for field in ("tokens", "chunk"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")

    def score(self, step: Step) -> Scores:
        chosen = choose_candidates(step, self.candidates, self.rho, self.tolerance)
        unsteered = torch.where(chosen, step.stats.top1, -torch.inf)
        # A row looks ahead where it has a choice, and something to look at.
        others = step.masked.sum(dim=1) > 1
        steered = (chosen.sum(dim=1) > step.budget) & others
        chosen = chosen & steered.unsqueeze(1)
        if not bool(steered.any()):
            return Scores(unsteered)
        row, slot = chosen.nonzero(as_tuple=True)
        tokens, weights = self._writes(step, row, slot)
        tried = weights > 0
        left = self._entropy_left(step, row, slot, tokens, tried)
        entropy = torch.where(step.masked, step.stats.entropy, 0.0).double()
        others_now = entropy.sum(dim=1)[row] - entropy[row, slot]
        gain = torch.zeros_like(entropy)
        gain[row, slot] = others_now - (left * weights).sum(dim=1)
        values = torch.where(chosen, gain, -torch.inf)
        values = torch.where(steered.unsqueeze(1), values, unsteered.to(values.dtype))
        spent = torch.zeros_like(step.budget).index_add_(0, row, tried.sum(dim=1))
        return Scores(
            values,
            {"gain": gain, "candidate": chosen},
            StepCost.of_forwards(spent * step.forwards.passes),
            scored=steered,
        )

    def _writes(self, step: Step, row: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens to try at each of N candidates, int64 (N, K), and their weights, float64."""
        if self.tokens == 1:
            tokens = step.proposal[row, slot].unsqueeze(1)
            return tokens, torch.ones_like(tokens, dtype=torch.float64)
        p = step.prediction.logits[row, slot].double().softmax(dim=-1)
        best, tokens = p.sort(dim=-1, descending=True, stable=True)
        best = best[:, : self.tokens]
        return tokens[:, : self.tokens], best / best.sum(dim=1, keepdim=True)

    def _entropy_left(
        self, step: Step, row: Tensor, slot: Tensor, tokens: Tensor, tried: Tensor
    ) -> Tensor:
        """Σ H of the positions still masked after each write that is tried, (N, K)."""
        candidate, choice = tried.nonzero(as_tuple=True)
        left = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
        for part in torch.arange(len(candidate), device=row.device).split(self.chunk):
            n, k = candidate[part], choice[part]
            ids = step.canvas.ids[row[n]]
            position = step.positions[row[n], slot[n]]
            ids.scatter_(1, position.unsqueeze(1), tokens[n, k].unsqueeze(1))
            prediction, stats = step.foresee(row[n], ids)
            entropy = torch.where(prediction.positions >= 0, stats.entropy, 0.0)
            left[n, k] = entropy.double().sum(dim=1)
        return left
