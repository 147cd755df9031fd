"""The greedy samplers, and how ties and ranks are settled."""

from __future__ import annotations

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st

from boe import Confidence, Entropy, Margin, generate
from boe.samplers.base import top_positions

# Position 0 has the largest top probability, 1 the largest margin, 2 the least entropy.
PROBABILITIES = torch.tensor(
    [
        [0.0, 0.60, 0.40, 0.0, 0.0, 0.0],
        [0.0, 0.55, 0.12, 0.11, 0.11, 0.11],
        [0.0, 0.50, 0.50, 0.0, 0.0, 0.0],
        [0.0, 0.20, 0.20, 0.20, 0.20, 0.20],
    ],
    dtype=torch.float64,
)


def order_of(sampler: object, probabilities: torch.Tensor = PROBABILITIES) -> list[int]:
    canvas = torch.full((len(probabilities),), MASK)
    denoiser = FakeDenoiser(probabilities.log())
    records = generate(denoiser, canvas, sampler, trajectory=True).items[0].trajectory
    return [int(record.revealed) for record in records]


def test_confidence_ranks_by_the_probability_of_the_token() -> None:
    assert order_of(Confidence()) == [0, 1, 2, 3]


def test_margin_ranks_by_the_lead_over_the_second() -> None:
    assert order_of(Margin()) == [1, 0, 2, 3]


def test_entropy_ranks_the_least_entropy_first() -> None:
    sharp = PROBABILITIES[[1, 0, 2, 3]]
    assert order_of(Entropy(), sharp) == [1, 2, 0, 3]


def test_confidence_scores_the_token_that_was_drawn_not_the_argmax() -> None:
    denoiser = FakeDenoiser(PROBABILITIES.log())
    canvas = torch.full((4,), MASK)
    for seed in range(5):
        result = generate(
            denoiser, canvas, "confidence", temperature=1.0, seed=seed, trajectory=True
        )
        first = result.items[0].trajectory[0]
        place, token = int(first.revealed), int(first.tokens)
        assert float(first.scores[place]) == pytest.approx(float(PROBABILITIES[place, token]))


def test_random_orders_are_uniform() -> None:
    denoiser = FakeDenoiser(torch.zeros(4, 3, dtype=torch.float64))
    canvases = [torch.full((4,), MASK)] * 600
    result = generate(denoiser, canvases, "random", trajectory=True)
    first = torch.tensor([int(item.trajectory[0].revealed) for item in result.items])
    counts = first.bincount(minlength=4).double()
    assert float(((counts - 150) ** 2 / 150).sum()) < 16.3  # 3 degrees of freedom, 0.1 %


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.sampled_from([-float("inf"), -1.0, 0.0, 1.0, 2.0]), min_size=1, max_size=9),
    members=st.integers(0, 511),
    count=st.integers(0, 10),
)
def test_top_positions_takes_the_largest_members_lowest_position_first(
    values: list[float], members: int, count: int
) -> None:
    among = [bool(members >> k & 1) for k in range(len(values))]
    order = sorted((k for k in range(len(values)) if among[k]), key=lambda k: (-values[k], k))
    taken = top_positions(
        torch.tensor([values]), torch.tensor([among]), torch.tensor([count])
    ).tolist()[0]
    assert [k for k, chosen in enumerate(taken) if chosen] == sorted(order[:count])


def test_top_positions_counts_each_canvas_for_itself() -> None:
    rank = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    among = torch.tensor([[True, True, True], [True, False, True]])
    taken = top_positions(rank, among, torch.tensor([2, 1]))
    assert taken.tolist() == [[False, True, True], [False, False, True]]
