"""Deadlines: what a step owes to the budget's plan after others ran ahead of it."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, table_of

from boe import FrontLoaded, Strategy, TokensPerStep, generate, sampler_from, spec_of
from boe.samplers import Budget, Clock, Confidence, Deadline, Entropy, EntropyBound, RemdmCap

CONFIDENCES = [0.99, 0.5, 0.97, 0.6, 0.95, 0.7, 0.92, 0.85]


UNSURE = [0.5, 0.45, 0.4, 0.35, 0.6, 0.55, 0.3, 0.5]


def revealed(spec: str, budget: Budget, confidences: list[float], **options) -> list[list[int]]:
    """What each step revealed."""
    canvas = torch.full((len(confidences),), MASK)
    denoiser = FakeDenoiser(table_of(confidences))
    item = generate(denoiser, canvas, spec, budget=budget, trajectory=True, **options).items[0]
    return [record.revealed.tolist() for record in item.trajectory]


def test_a_step_after_one_that_ran_ahead_reveals_one_token_until_the_plan_catches_up() -> None:
    plain = revealed("threshold:value=0.9", TokensPerStep(2), CONFIDENCES)
    late = revealed("threshold:value=0.9+deadline", TokensPerStep(2), CONFIDENCES)
    assert plain == [[0, 2, 4, 6], [5, 7], [1, 3]]
    # Planned are 2, 4, 6 and 8 tokens after the four steps.
    assert late == [[0, 2, 4, 6], [7], [5], [1, 3]]


@pytest.mark.parametrize("count", ["threshold:value=0.9", "eb:gamma=0.3", "factor", "overlap"])
@pytest.mark.parametrize("budget", [TokensPerStep(3), FrontLoaded(3), TokensPerStep(1)])
def test_no_step_leaves_less_written_than_the_plan_says(count: str, budget: Budget) -> None:
    plan = list(accumulate(budget.plan(8)))
    for confidences in (CONFIDENCES, UNSURE):
        steps = revealed(f"{count}+deadline", budget, confidences)
        written = list(accumulate(len(step) for step in steps))
        assert written[-1] == 8
        assert len(written) <= len(plan)
        assert all(done >= due for done, due in zip(written, plan, strict=False))


def test_at_one_token_a_step_a_deadline_changes_nothing() -> None:
    plain = revealed("eb:gamma=0.3", TokensPerStep(1), CONFIDENCES)
    assert len(plain) < 8
    assert revealed("eb:gamma=0.3+deadline", TokensPerStep(1), CONFIDENCES) == plain


def test_each_block_has_a_deadline_of_its_own() -> None:
    steps = revealed("threshold:value=0.9+deadline", TokensPerStep(2), CONFIDENCES, block_length=4)
    # What the first block is ahead is lost on the second.
    assert steps == [[0, 2], [1, 3], [4, 6], [5, 7]]


def test_rows_that_run_ahead_lend_nothing_to_their_neighbours() -> None:
    sure, unsure = torch.full((8,), MASK), torch.tensor([1, MASK, 1, MASK, 1, MASK, 1, MASK])
    spec, budget = "threshold:value=0.9+deadline", TokensPerStep(2)
    denoiser = FakeDenoiser(table_of(CONFIDENCES))
    items = generate(denoiser, [sure, unsure], spec, budget=budget, trajectory=True).items
    steps = [[record.revealed.tolist() for record in item.trajectory] for item in items]
    assert steps == [[[0, 2, 4, 6], [7], [5], [1, 3]], [[5, 7], [1, 3]]]


def test_a_deadline_needs_a_count_and_refuses_remasking() -> None:
    with pytest.raises(ValueError, match=r"deadline needs a count.*got count=none, remask=none"):
        Strategy(Confidence(), deadline=Deadline())
    with pytest.raises(ValueError, match="no remasking; got count=eb, remask=remdm-cap"):
        Strategy(Entropy(), EntropyBound(), remask=RemdmCap(), deadline=Deadline())


def test_its_specification_reads_back() -> None:
    strategy = Strategy(Entropy(), EntropyBound(), deadline=Deadline())
    assert sampler_from("entropy+eb+deadline") == strategy
    assert spec_of(strategy) == "entropy+eb+deadline"


@pytest.mark.parametrize(
    ("plan", "index", "left", "early", "due"),
    [
        ((3, 3, 2), 0, 8, 0.0, 3),
        ((3, 3, 2), 0, 8, 0.5, 4),
        ((3, 3, 2), 0, 8, 1.0, 6),
        ((3, 3, 2), 1, 3, 1.0, 3),
        ((3, 3, 2), 0, 1, 0.0, -4),  # ahead of the plan
        ((3, 3, 2), 2, 2, 1.0, 2),
        ((3, 3, 2), 5, 2, 1.0, 2),  # behind its end: all that is left
        ((4, -2, 6), 0, 8, 0.25, 3),  # a step that takes back
    ],
)
def test_what_is_due_is_what_the_plan_has_and_the_block_has_not(
    plan: tuple[int, ...], index: int, left: int, early: float, due: int
) -> None:
    clock = Clock(index, len(plan), len(plan), 1, left, masks=8, start=4, end=12, plan=plan)
    assert clock.due(early) == due
