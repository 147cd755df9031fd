"""How many tokens each step reveals."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boe import Cosine, FrontLoaded, TokensPerStep


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from((TokensPerStep, FrontLoaded, Cosine)),
    number=st.integers(1, 60),
    masks=st.integers(1, 90),
    blocks=st.integers(1, 8),
)
def test_plans_are_positive_and_add_up_to_the_masks(kind, number, masks, blocks) -> None:
    plan = kind(number).plan(masks, blocks)
    assert sum(plan) == masks
    assert min(plan) >= 1


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from((FrontLoaded, Cosine)), steps=st.integers(1, 60), masks=st.integers(1, 90)
)
def test_plans_by_steps_take_no_more_steps_than_asked(kind, steps, masks) -> None:
    plan = kind(steps).plan(masks)
    assert len(plan) <= steps
    if masks >= steps and kind is FrontLoaded:
        assert len(plan) == steps


@pytest.mark.parametrize(
    ("tokens", "masks", "plan"), [(1, 3, (1, 1, 1)), (4, 10, (4, 4, 2)), (4, 3, (3,)), (5, 5, (5,))]
)
def test_tokens_per_step_leaves_the_rest_to_the_last_step(tokens, masks, plan) -> None:
    assert TokensPerStep(tokens).plan(masks) == plan


@pytest.mark.parametrize(
    ("steps", "masks", "plan"),
    [(4, 10, (3, 3, 2, 2)), (4, 8, (2, 2, 2, 2)), (5, 3, (1, 1, 1)), (1, 7, (7,))],
)
def test_front_loaded_gives_the_remainder_to_the_first_steps_as_llada_does(
    steps, masks, plan
) -> None:
    assert FrontLoaded(steps).plan(masks) == plan


def test_blocks_share_the_steps() -> None:
    assert FrontLoaded(8).plan(10, blocks=2) == (3, 3, 2, 2)
    assert FrontLoaded(1).plan(10, blocks=4) == (10,)
    assert len(Cosine(8).plan(16, blocks=2)) <= 4


def test_cosine_leaves_what_maskgit_leaves() -> None:
    plan = Cosine(8).plan(64)
    left = 64
    for k, count in enumerate(plan, 1):
        left -= count
        if k < 8:
            assert left == math.floor(64 * math.cos(math.pi / 2 * k / 8))
    assert left == 0
    assert plan[0] < plan[-1], "few tokens first, many last"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokensPerStep(0), "tokens must be at least 1, got 0"),
        (lambda: FrontLoaded(0), "steps must be at least 1, got 0"),
        (lambda: Cosine(-2), "steps must be at least 1, got -2"),
    ],
)
def test_budgets_that_reveal_nothing_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
