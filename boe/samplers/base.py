"""The parts of a decoding policy, and how they make one move together.

*Which* positions come first is a :class:`Sampler`'s ranking; *how many* a budget's plan
or a :class:`Count`; *what is taken back* a :class:`Remask`'s. :func:`choose` puts the
three together. A policy that decides all at once is a :class:`Policy` with a ``move`` of
its own. All are frozen dataclasses; what they carry from step to step is in the step's
memory. The decoding loop (:mod:`boe.decoding.loop`) owns the canvas, the clock, the
forwards, the random generators, stopping and accounting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from boe.denoisers.base import Keep
from boe.samplers.step import (
    Clock,
    Forwards,
    Move,
    Ready,
    Scores,
    Step,
    StepCost,
    ranked_order,
    share_of,
    top_positions,
)

__all__ = [
    "Clock",
    "Count",
    "Forwards",
    "Move",
    "Policy",
    "Ready",
    "Remask",
    "Sampler",
    "Scores",
    "Step",
    "StepCost",
    "check_move",
    "choose",
    "ranked_order",
    "share_of",
    "top_positions",
]


class Policy(ABC):
    """A rule that decides what one step reveals, and what it takes back.

    Attributes:
        name: what spec strings call it.
        temperature: at which tokens are drawn unless the caller says otherwise.
        stochastic: whether it draws positions at random, so that two decodes differ even
            at temperature 0.
        takes_back: whether it may turn written tokens into masks again of itself; its
            blocks then last until their last step, though no mask be left.
        noised: whether it reads ``Step.noised_log_probability``.
        reuses: whether a step that changes nothing lends its forward to the next.
        combines: whether, under guidance, what is kept must be kept of both branches.
    """

    name: ClassVar[str]
    temperature: ClassVar[float] = 0.0
    stochastic: ClassVar[bool] = False
    takes_back: ClassVar[bool] = False
    noised: ClassVar[bool] = False
    reuses: ClassVar[bool] = False

    @property
    def combines(self) -> bool:
        """Whether gradients go through both branches of classifier-free guidance."""
        return False

    @property
    def keep(self) -> Keep:
        """What the step's prediction must keep for this policy."""
        return "nothing"

    def steers(self, clock: Clock) -> bool:
        """Whether this step may need what ``keep`` says; if not, nothing is kept."""
        return True

    def plan(self, planned: tuple[int, ...]) -> tuple[int, ...]:
        """By how many masks each step of a block shrinks it, from the budget's plan.

        Numbers below 0 are steps that take tokens back. They add up to the block's masks.
        """
        return planned

    def duration(self, plan: tuple[int, ...]) -> int:
        """How many steps a block of that plan takes (``Clock.total``).

        A policy that ranks goes on after them where masks are left; others must reveal
        whatever is left in the step after the last.
        """
        return len(plan)

    def observes(self, clock: Clock) -> bool:
        """Whether this step must see the logits of the block's observed positions too."""
        return False

    @abstractmethod
    def move(self, step: Step) -> Move:
        """Decide a step."""


class Sampler(Policy):
    """A policy that ranks masked positions: the budget's number of them is revealed."""

    @abstractmethod
    def score(self, step: Step) -> Scores:
        """Score the masked positions of ``step``; ties go to the lowest position."""

    def move(self, step: Step) -> Move:
        return choose(step, self)


class Count(ABC):
    """How many positions a step reveals, row by row; never fewer than the budget plans.

    Attributes:
        home: the sampler that it goes with when a spec string names none.
    """

    name: ClassVar[str]
    home: ClassVar[str]

    @property
    def fills(self) -> bool:
        """Whether it finds the whole budget by itself, so that the ranking has no say."""
        return False

    @property
    def further(self) -> int:
        """How many positions the sampler adds to the ready ones at least."""
        return 0

    def ready(self, step: Step) -> Tensor | None:
        """bool (B, P), eligible positions that are revealed whatever their rank.

        Where there are enough of them (:meth:`enough`) the sampler is not asked.
        """
        return None

    def enough(self, ready: Tensor, budget: Tensor) -> Tensor:
        """bool (B,), rows whose number of ready positions (B,) needs no filling up."""
        return ready >= budget

    def extend(self, step: Step, values: Tensor, among: Tensor, least: Tensor) -> Tensor:
        """How many of ``among`` (B, P), ranked by ``values``, to reveal: (B,), ≥ ``least``."""
        return least


class Remask(ABC):
    """What a step takes back: written tokens that become masks again.

    With a ranking sampler as many masks are revealed in addition as tokens are taken
    back, so that the number of masks falls as the budget plans.

    Attributes:
        home: the policy that it goes with when a spec string names none.
    """

    name: ClassVar[str]
    home: ClassVar[str]

    def plan(self, planned: tuple[int, ...]) -> tuple[int, ...]:
        """As :meth:`Policy.plan`."""
        return planned

    def observes(self, clock: Clock) -> bool:
        """As :meth:`Policy.observes`."""
        return False

    @abstractmethod
    def pick(self, step: Step) -> Tensor:
        """bool (B, L), observed positions to take back in a step of a ranking sampler."""

    def remember(self, step: Step, move: Move) -> None:  # noqa: B027 (most rules need nothing)
        """Keep what later steps need of this one in ``step.memory``."""


def choose(
    step: Step, sampler: Sampler, count: Count | None = None, remask: Remask | None = None
) -> Move:
    """One move from a ranking, a count and a remasking rule.

    1. Tokens are taken back; as many masks are revealed in addition.
    2. Ready positions (``count``) are revealed; rows that have enough of them, and rows
       that must reveal all they may, are not ranked.
    3. Elsewhere the best-ranked positions are revealed, as many as the budget plans, or
       more if the count says so.
    """
    eligible, budget = step.eligible, step.budget
    taken = None if remask is None else _taken_back(step, remask)
    if taken is not None:
        revealing = torch.tensor([c.change > 0 for c in step.clocks], device=budget.device)
        budget = torch.where(revealing, budget + taken.sum(dim=1), 0)
    early = eligible if step.delayed is None else eligible & ~step.delayed
    among = _early_where_enough(eligible, early, budget)
    free = eligible.sum(dim=1) > budget
    ranked = free if remask is None else free & (budget > 0)
    asked = step
    if among is not eligible or budget is not step.budget:
        asked = replace(step, eligible=among, budget=budget)
    ready = None
    if count is not None:
        # What waits uses up no part of a count.
        ready = count.ready(asked if early is among else replace(asked, eligible=early))
    fill = budget
    if count is not None and ready is not None:
        ready = ready & early
        found = ready.sum(dim=1)
        enough = count.enough(found, budget) & (budget > 0)
        if taken is not None:
            # Fewer reveals than tokens taken back would be no progress.
            enough = enough & (found > taken.sum(dim=1))
        ready = ready & (budget > 0).unsqueeze(1)
        ranked = ranked & ~enough
        nothing = enough | (budget == 0)
        fill = torch.where(nothing, 0, (budget - found).clamp_min(count.further))
        left = among & ~ready & ranked.unsqueeze(1)
        asked = replace(asked, eligible=left, budget=fill)
    # Rows whose eligible positions will all be revealed leave nothing to score.
    scores = Scores(step.stats.top1)
    if bool(ranked.any()):
        scores = _checked(sampler.score(asked), sampler, asked, ranked)
    values = torch.where(ranked.unsqueeze(1), scores.values, step.stats.top1)
    if among is not eligible:
        # Where too few others are left, all of them go before the delayed ones.
        scarce = early.sum(dim=1) < budget
        values = values.masked_fill(early & scarce.unsqueeze(1), torch.inf)
    number = budget
    if ready is not None:
        values = values.masked_fill(ready, torch.inf)
        number = ready.sum(dim=1) + fill
    if count is not None:
        extended = count.extend(step, values, among, number)
        _check_numbers(extended, count, number)
        number = torch.where(ranked, extended, number)
    scored = ranked if scores.scored is None else ranked & scores.scored
    scores = replace(scores, values=values, scored=scored)
    move = Move(top_positions(values, among, number), step.proposal, scores, taken)
    if remask is not None:
        remask.remember(step, move)
    return move


def _checked(scores: Scores, sampler: Sampler, step: Step, ranked: Tensor) -> Scores:
    """What a sampler answered, which may be anybody's own."""
    name = f"{type(sampler).__name__}.score"
    if not isinstance(scores, Scores):
        raise TypeError(f"{name} must return Scores, got {type(scores).__name__}")
    wanted = tuple(step.eligible.shape)
    if tuple(scores.values.shape) != wanted:
        raise ValueError(
            f"{name} must return values of shape (B, P) = {wanted}, "
            f"got {tuple(scores.values.shape)}"
        )
    wrong = scores.values.isnan() & step.eligible & ranked.unsqueeze(1)
    # Of logits that are NaN the decoder tells.
    if bool((wrong & ~step.stats.entropy.isnan()).any()):
        raise ValueError(f"{name} returned NaN for a position that may be revealed")
    return scores


def _check_numbers(numbers: Tensor, count: Count, like: Tensor) -> None:
    """Raises unless what a count answered, which may be anybody's own, is a number per row."""
    if not isinstance(numbers, Tensor) or numbers.dtype != like.dtype:
        got = numbers.dtype if isinstance(numbers, Tensor) else type(numbers).__name__
        raise TypeError(f"{type(count).__name__}.extend must return an int64 tensor, got {got}")
    if numbers.shape != like.shape:
        raise ValueError(
            f"{type(count).__name__}.extend must return a tensor of shape (B,) = "
            f"{tuple(like.shape)}, got {tuple(numbers.shape)}"
        )


def check_move(move: Move, policy: Policy, step: Step) -> None:
    """Raises unless a policy, which may be anybody's own, answered with what a move is.

    Raises:
        TypeError: it is none. ValueError: a tensor of another dtype or shape.
    """
    name = f"{type(policy).__name__}.move"
    if not isinstance(move, Move):
        raise TypeError(f"{name} must return a Move, got {type(move).__name__}")
    wanted = {
        "reveal": (move.reveal, torch.bool, step.eligible),
        "tokens": (move.tokens, torch.int64, step.eligible),
    }
    if move.remask is not None:
        wanted["remask"] = (move.remask, torch.bool, step.observed)
    for part, (tensor, dtype, like) in wanted.items():
        if tensor.dtype != dtype or tensor.shape != like.shape:
            raise ValueError(
                f"{name} must return {part} of dtype {dtype} and shape {tuple(like.shape)}, "
                f"got {tensor.dtype} and {tuple(tensor.shape)}"
            )


def _taken_back(step: Step, remask: Remask) -> Tensor:
    """What the rule takes back, but so few that a revealing step makes progress.

    A step that reveals needs a mask for each token it takes back, beside those of its
    budget; the excess is left in place, the highest positions first.
    """
    picked = remask.pick(step) & step.observed
    spare = step.of_rows(lambda c: c.left - c.change if c.change > 0 else c.masks).long()
    return picked & (picked.cumsum(dim=1) <= spare)


def _early_where_enough(eligible: Tensor, early: Tensor, budget: Tensor) -> Tensor:
    """The ``early`` ones of ``eligible`` (B, P), in rows where enough of them are left."""
    if early is eligible:
        return eligible
    suffices = (early.sum(dim=1) >= budget) & early.any(dim=1)
    return torch.where(suffices.unsqueeze(1), early, eligible)
