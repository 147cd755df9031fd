"""LookUM: several ways on, each tried by a forward, one chosen by how certain it leaves us."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from boe.arguments import check_numbers, refuse_unused
from boe.samplers.base import Move, Policy, Ready, Scores, Step, StepCost, top_positions

VERIFIERS = ("entropy", "confidence")
SPANS = ("masked", "generated")
CERTAINTIES = ("confidence", "margin", "entropy")


@dataclass(frozen=True)
class LookUM(Policy):
    """Lookahead unmasking (Lee et al., 2025, arXiv 2511.05563).

    Each step draws ``paths`` sets of b positions (b: the budget) from a pool of certain
    ones, writes each set on a copy of the canvas, runs a forward on every copy, and takes
    one with chance softmax(verifier / ``path_temperature``). The chosen copy's forward
    serves as the next step's, so a step costs ``paths`` forwards, and the last b tokens,
    which leave nothing to choose, none but that.

    The paper gives the pool (5 positions), b = 2, 2 to 3 paths and the verifiers. Not given
    there and chosen here: both temperatures, the span, whether forwards are reused, that
    paths of one step share their token draws. With ``paths=1`` there is no
    lookahead: a draw from the pool, which particles (``smc:potential=certainty,every=1``)
    turn into the paper's SMC variant.

    Attributes:
        paths: k.
        pool: the most certain so many eligible positions (never fewer than b).
        threshold: all that are at least this certain instead (but no fewer than b);
            ``None`` for the pool by number.
        certainty: "confidence", "margin" or "entropy" (negative), by which pool and draws
            go.
        pool_temperature: sets are drawn without replacement from
            softmax(certainty / this); 0 always takes the most certain.
        verifier: "entropy", minus the mean entropy, or "confidence", the mean top
            probability, after the write.
        span: of the "masked" positions, or of all "generated" ones.
        path_temperature: 0 takes the best path.
        greedy_first: make the first set the most certain one.
        reuse: lend the chosen path's forward to the next step.
    """

    paths: int = 2
    pool: int = 5
    threshold: float | None = None
    certainty: str = "confidence"
    pool_temperature: float = 0.1
    verifier: str = "entropy"
    span: str = "masked"
    path_temperature: float = 0.1
    greedy_first: bool = False
    reuse: bool = True

    name: ClassVar[str] = "lookum"
    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_numbers(self)
        for field in ("paths", "pool"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field, choices in (
            ("certainty", CERTAINTIES),
            ("verifier", VERIFIERS),
            ("span", SPANS),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field} must be one of {', '.join(choices)}, got {getattr(self, field)!r}"
                )
        for field in ("pool_temperature", "path_temperature"):
            value = getattr(self, field)
            if not (value >= 0.0 and math.isfinite(value)):
                raise ValueError(f"{field} must be finite and not negative, got {value}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be finite, got {self.threshold}")
        if self.threshold is not None:
            refuse_unused(self, ("pool",), f"threshold=None, got threshold={self.threshold}")
        if self.paths == 1:
            of_choice = ("verifier", "span", "path_temperature", "reuse")
            refuse_unused(self, of_choice, "paths > 1, got paths=1")
        if not self.pool_temperature:
            refuse_unused(self, ("greedy_first",), "pool_temperature > 0, got pool_temperature=0")

    def move(self, step: Step) -> Move:
        certainty = self._certainty(step)
        sets = self._sets(step, certainty)
        free = step.eligible.sum(dim=1) > step.budget
        looking = free if self.paths > 1 else torch.zeros_like(free)
        parts = {"pool": self._pool(step, certainty)}
        if not bool(looking.any()):
            return Move(sets[:, 0], step.proposal, Scores(certainty, parts, scored=free))
        row = looking.nonzero().squeeze(1)
        verdicts, lent = self._try(step, sets, row)
        pick = self._pick(step, verdicts, looking)
        place = torch.zeros_like(step.budget)
        place[row] = pick[row]
        reveal = sets[torch.arange(len(place), device=place.device), place]
        ready = None
        if self.reuse:
            chosen = dict(zip(row.tolist(), pick[row].tolist(), strict=True))
            ready = tuple(lent[k][chosen[k]] if k in chosen else None for k in range(len(place)))
        spent = looking * self.paths * step.forwards.passes
        scores = Scores(certainty, parts, StepCost.of_forwards(spent), scored=free)
        return Move(reveal, step.proposal, scores, ready=ready)

    def _certainty(self, step: Step) -> Tensor:
        if self.certainty == "confidence":
            return step.proposal_probability.double()
        if self.certainty == "margin":
            return (step.stats.top1 - step.stats.top2).double()
        return -step.stats.entropy.double()

    def _pool(self, step: Step, certainty: Tensor) -> Tensor:
        """bool (B, P), the positions that sets are drawn from."""
        if self.threshold is None:
            return top_positions(certainty, step.eligible, step.budget.clamp_min(self.pool))
        sure = step.eligible & (certainty >= self.threshold)
        return sure | top_positions(certainty, step.eligible, step.budget)

    def _sets(self, step: Step, certainty: Tensor) -> Tensor:
        """bool (B, paths, P), each path's positions: draws without replacement."""
        pool = self._pool(step, certainty)
        sets = []
        for path in range(self.paths):
            rank = certainty
            if self.pool_temperature > 0 and not (path == 0 and self.greedy_first):
                rank = certainty / self.pool_temperature + step.gumbel(pool)
            sets.append(top_positions(rank, pool, step.budget))
        return torch.stack(sets, dim=1)

    def _try(self, step: Step, sets: Tensor, row: Tensor) -> tuple[Tensor, dict[int, list[Ready]]]:
        """Verdicts (B, paths), and per looking row each path's prediction."""
        batch = step.positions.shape[0]
        taken = sets[row].flatten(0, 1)
        source = row.repeat_interleave(self.paths)
        target = torch.where(taken, step.positions[source], step.canvas.length)
        padded = torch.nn.functional.pad(step.canvas.ids[source], (0, 1))
        ids = padded.scatter_(1, target, step.proposal[source])[:, :-1]
        extra = None if self.span == "masked" else ~step.given[source]
        prediction, stats = step.foresee(source, ids, extra)
        measure = -stats.entropy if self.verifier == "entropy" else stats.top1
        counted = prediction.positions >= 0
        total = torch.where(counted, measure, 0.0).double().sum(dim=1)
        verdict = total / counted.sum(dim=1).clamp_min(1)
        verdicts = torch.zeros(batch, self.paths, dtype=torch.float64, device=ids.device)
        verdicts[row] = verdict.unflatten(0, (len(row), self.paths))
        lent: dict[int, list[Ready]] = {}
        if self.reuse:
            masked = counted & (
                ids.gather(1, prediction.positions.clamp_min(0)) == step.denoiser.facts.mask_id
            )
            for k, number in enumerate(source.tolist()):
                shown = Ready(prediction.positions[k, masked[k]], prediction.logits[k, masked[k]])
                lent.setdefault(number, []).append(shown)
        return verdicts, lent

    def _pick(self, step: Step, verdicts: Tensor, looking: Tensor) -> Tensor:
        """int64 (B,), the path that each looking row takes."""
        if self.path_temperature == 0.0:
            return verdicts.argmax(dim=1)
        where = looking.unsqueeze(1).expand_as(verdicts)
        noise = step.gumbel(where)
        return (verdicts / self.path_temperature + noise).argmax(dim=1)
