"""Trying out writes: what each would do to the entropy of the other masked positions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from boe.denoisers.base import Context
from boe.samplers.step import Step, StepCost


class Writes(NamedTuple):
    """What is tried: K tokens at each of N candidates.

    Attributes:
        row, slot: int64 (N,), which slot of which batch row.
        tokens: int64 (N, K).
        weights: float64 (N, K), adding up to 1; a token of weight 0 is not tried.
    """

    row: Tensor
    slot: Tensor
    tokens: Tensor
    weights: Tensor


class Fall(NamedTuple):
    """What the candidates' writes did.

    Attributes:
        gain: float64 (B, P), by how much the entropies of the other masked positions fall in
            expectation, in nats; 0 at slots that were not tried.
        cost: what trying took.
    """

    gain: Tensor
    cost: StepCost


def likely_writes(step: Step, candidates: Tensor, tokens: int) -> Writes:
    """The ``tokens`` most probable tokens of each of ``candidates``, bool (B, P).

    Their weights are their probabilities, renormalised. With 1 it is the token that would be
    written.
    """
    row, slot = candidates.nonzero(as_tuple=True)
    if tokens == 1:
        chosen = step.proposal[row, slot].unsqueeze(1)
        return Writes(row, slot, chosen, torch.ones_like(chosen, dtype=torch.float64))
    p = step.prediction.logits[row, slot].double().softmax(dim=-1)
    best, order = p.sort(dim=-1, descending=True, stable=True)
    best = best[:, :tokens]
    return Writes(row, slot, order[:, :tokens], best / best.sum(dim=1, keepdim=True))


def expected_fall(
    step: Step, writes: Writes, context: Context, chunk: int, beside: Tensor | None = None
) -> Fall:
    """By how much Σ H over the other masked positions falls when a candidate is written.

    Args:
        context: "full": a forward of the whole canvas for every write; "frozen": only the
            masked rows and the written one are run again, and the others keep the keys and
            values of the step's own forward.
        chunk: how many writes are tried at once.
        beside: int64 (B, L), the canvases in which they are tried, where more is written than
            in the step's: then of the fall over the positions that are masked in them.
    """
    row, slot, _, weights = writes
    ids = step.canvas.ids if beside is None else beside
    tried = weights > 0
    left, run = _entropy_left(step, ids, writes, tried, context, chunk)
    masked = step.masked & (step.at_slots(ids) == step.denoiser.facts.mask_id)
    entropy = torch.where(masked, step.stats.entropy, 0.0).double()
    others = entropy.sum(dim=1)[row] - entropy[row, slot]
    gain = torch.zeros_like(entropy)
    gain[row, slot] = others - (left * weights).sum(dim=1)
    spent = torch.zeros_like(entropy[:, 0]).index_add_(0, row, run.sum(dim=1))
    nothing = torch.zeros_like(spent)
    if context == "full":
        return Fall(gain, StepCost.of_forwards(spent))
    return Fall(gain, StepCost(forwards=nothing, backwards=nothing, rows=spent))


def _entropy_left(
    step: Step, canvases: Tensor, writes: Writes, tried: Tensor, context: Context, chunk: int
) -> tuple[Tensor, Tensor]:
    """Σ H of the positions still masked after each write that is tried, float64 (N, K); and
    what each took, in forwards or, of a frozen context, in rows."""
    row, slot, tokens, _ = writes
    candidate, choice = tried.nonzero(as_tuple=True)
    left = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    spent = torch.zeros_like(left)
    for part in torch.arange(len(candidate), device=row.device).split(chunk):
        n, k = candidate[part], choice[part]
        ids = canvases[row[n]]
        position = step.positions[row[n], slot[n]]
        ids.scatter_(1, position.unsqueeze(1), tokens[n, k].unsqueeze(1))
        if context == "full":
            prediction, stats = step.foresee(row[n], ids)
            spent[n, k] = float(step.forwards.passes)
        else:
            prediction, stats, run = step.foresee_frozen(row[n], ids)
            spent[n, k] = run.double()
        entropy = torch.where(prediction.positions >= 0, stats.entropy, 0.0)
        left[n, k] = entropy.double().sum(dim=1)
    return left, spent
