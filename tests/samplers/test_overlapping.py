"""How many positions a step reveals: those that do not compete for the same tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser
from torch import Tensor

from boe import TokensPerStep, generate
from boe.canvas import Canvas
from boe.denoisers.base import Prediction
from boe.samplers import Deadline, Entropy, OverlapBound, Strategy, overlapping

HALF = math.log(2)
"""Entropy of a fair choice between two tokens, nats."""


def table_of_choices(choices: list[list[int]], vocabulary: int = 7) -> Tensor:
    """Logits (L, V): each position is equally likely to hold any of its tokens."""
    table = torch.full((len(choices), vocabulary), -torch.inf, dtype=torch.float64)
    for position, tokens in enumerate(choices):
        table[position, tokens] = 0.0
    return table


def revealed(
    table: Tensor, count: OverlapBound, budget: int = 1, deadline: Deadline | None = None
) -> list[list[int]]:
    canvas = torch.full((len(table),), MASK)
    strategy = Strategy(Entropy(), count=count, deadline=deadline)
    result = generate(
        FakeDenoiser(table), canvas, strategy, budget=TokensPerStep(budget), trajectory=True
    )
    return [record.revealed.tolist() for record in result.items[0].trajectory]


def by_hand(
    table: Tensor, count: OverlapBound, budget: int = 1, deadline: Deadline | None = None
) -> list[list[int]]:
    """The rule of the docstring, position by position in plain Python."""
    p = [[math.exp(z) for z in row] for row in table.log_softmax(dim=-1).tolist()]
    entropy = [-sum(q * math.log(q) for q in row if q > 0) for row in p]

    def cosine(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(p[i], p[j], strict=True))
        return dot / (math.hypot(*p[i]) * math.hypot(*p[j]))

    left, steps = set(range(len(p))), []
    while left:
        written, k = len(p) - len(left), len(steps)
        behind = min((k + 1) * budget, len(p)) - written
        share = min(budget, len(p) - k * budget) if k * budget < len(p) else budget
        asked = min(share if deadline is None else max(behind, 1), len(left))
        following = min(budget, max(len(p) - (k + 1) * budget, 0))
        due = max(asked, behind + math.floor(count.early * following))
        order = sorted(left, key=lambda i: (entropy[i], i))
        wrong = {i: 1 - max(p[i]) for i in left if max(p[i]) < count.floor}
        if count.slack is not None and wrong:
            close = [i for i in wrong if wrong[i] <= (1 + count.slack) * min(wrong.values())]
            first = max(close, key=lambda i: (entropy[i], -i))
            order.sort(key=lambda i: (i in wrong, i != first))

        def cost_beside(j: int, taken: list[int]) -> float:
            charged = [count.share + (1 - count.share) * cosine(i, j) for i in taken]
            lower = [min(entropy[i], entropy[j]) for i in taken]
            return min(entropy[j], sum(a * b for a, b in zip(charged, lower, strict=True)))

        taken: list[int] = []
        spent = 0.0
        for j in order:
            cost = cost_beside(j, taken)
            joins = max(p[j]) >= count.floor or len(taken) < due
            if not taken or (joins and spent + cost <= count.gamma):
                taken.append(j)
                spent += cost
        while len(taken) < asked:
            rest = [j for j in order if j not in taken]
            if count.fill == "cost":
                rest.sort(key=lambda j: cost_beside(j, taken) + count.share * entropy[j])
            else:
                rest.sort(key=lambda j: (entropy[j], j))
            taken.append(rest[0])
        steps.append(sorted(taken))
        left -= set(taken)
    return steps


def test_positions_with_no_token_in_common_go_together_and_rivals_one_at_a_time() -> None:
    table = table_of_choices([[1, 2], [1, 2], [3, 4], [5, 6], [5, 6]])
    assert revealed(table, OverlapBound(0.0, share=0.0)) == [[0, 2, 3], [1, 4]]


def test_a_position_that_is_certain_costs_the_others_nothing() -> None:
    table = table_of_choices([[1], [1, 2], [1], [1]])
    assert revealed(table, OverlapBound(0.0, share=0.0)) == [[0, 1, 2, 3]]


def test_what_a_pair_shares_is_the_cosine_times_the_lower_entropy() -> None:
    # cos([½, ½, 0], [0, ½, ½]) = ½, both entropies are ln 2.
    table = table_of_choices([[1, 2], [2, 3]])
    assert revealed(table, OverlapBound(0.49 * HALF, share=0.0)) == [[0], [1]]
    assert revealed(table, OverlapBound(0.51 * HALF, share=0.0)) == [[0, 1]]


def test_no_position_costs_more_than_its_entropy() -> None:
    # Costs 0, ln 2, min(ln 2, 2 ln 2), min(ln 2, 3 ln 2): 3·ln 2 lets all through.
    table = table_of_choices([[1, 2]] * 4)
    assert revealed(table, OverlapBound(3.01 * HALF)) == [[0, 1, 2, 3]]
    assert revealed(table, OverlapBound(2.99 * HALF)) == [[0, 1, 2], [3]]


def test_pairs_with_no_token_in_common_are_charged_the_share() -> None:
    # The second costs 0.1·ln 2, the third twice that.
    table = table_of_choices([[1, 2], [3, 4], [5, 6]])
    assert revealed(table, OverlapBound(0.31 * HALF, share=0.1)) == [[0, 1, 2]]
    assert revealed(table, OverlapBound(0.29 * HALF, share=0.1)) == [[0, 1], [2]]
    assert revealed(table, OverlapBound(0.09 * HALF, share=0.1)) == [[0], [1], [2]]


def test_a_position_that_does_not_fit_is_passed_over_and_does_not_end_the_step() -> None:
    # By entropy: 0, 1 (a rival of 0, too dear), then 2, which competes with neither.
    table = table_of_choices([[1, 2], [1, 2], [3, 4, 5]])
    assert revealed(table, OverlapBound(0.1, share=0.0)) == [[0, 2], [1]]


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("share", "floor"), [(0.0, 0.0), (0.05, 0.4), (1.0, 0.0), (0.3, 0.9)])
@pytest.mark.parametrize("budget", [1, 3])
@pytest.mark.parametrize(
    ("deadline", "fill", "slack"),
    [
        (None, "ranking", None),
        (Deadline(), "ranking", None),
        (Deadline(), "cost", None),
        (None, "cost", 0.3),
        (Deadline(), "cost", math.inf),
    ],
)
def test_steps_are_those_of_the_rule_carried_out_in_plain_python(
    gamma: float,
    share: float,
    floor: float,
    budget: int,
    deadline: Deadline | None,
    fill: str,
    slack: float | None,
) -> None:
    generator = torch.Generator().manual_seed(5)
    for sharpness in (1.0, 3.0, 8.0):
        table = sharpness * torch.randn(12, 9, generator=generator, dtype=torch.float64)
        table[:, MASK] = -torch.inf
        for early in (0.4, 1.0):
            count = OverlapBound(gamma, share, floor, early, fill, slack if floor else None)
            steps = revealed(table, count, budget, deadline)
            assert steps == by_hand(table, count, budget, deadline)


def test_unsure_positions_below_the_floor_are_written_one_at_a_time() -> None:
    table = table_of_choices([[1], [2, 3], [4, 5], [6]])
    assert revealed(table, OverlapBound(10.0, floor=0.6)) == [[0, 3], [1], [2]]


def test_what_is_due_is_written_beside_what_it_does_not_compete_with() -> None:
    # Two rivals and two others, all unsure; two are due at once, three with the next step's.
    table = table_of_choices([[1, 2], [1, 2], [3, 4], [5, 6]])
    count = OverlapBound(0.0, share=0.0, floor=0.9, early=0.0)
    assert revealed(table, count, budget=2) == [[0, 2], [1, 3]]
    assert revealed(table, replace(count, early=0.5), budget=2) == [[0, 2, 3], [1]]
    assert revealed(table, replace(count, early=0.5), budget=1) == [[0], [1], [2], [3]]


def test_the_ranking_fills_up_to_the_budget() -> None:
    table = table_of_choices([[1, 2], [1, 2], [1, 2], [1, 2], [1, 2]])
    assert revealed(table, OverlapBound(0.0, share=0.0), budget=2) == [[0, 1], [2, 3], [4]]


def test_the_count_fills_up_with_what_ignores_least_if_it_is_asked_to() -> None:
    # Two rivals and one that competes with neither; nothing fits beside the first.
    table = table_of_choices([[1, 2], [1, 2], [3, 4, 5]])
    assert revealed(table, OverlapBound(0.0, share=0.1), budget=2) == [[0, 1], [2]]
    count = OverlapBound(0.0, share=0.1, fill="cost")
    assert revealed(table, count, budget=2) == [[0, 2], [1]]


def test_what_fills_up_is_charged_for_being_open_itself() -> None:
    # Beside the first, a half rival costs s + (1 − s)/2 and s of its own, the open one s and
    # 2s of its own, in units of ln 2.
    table = table_of_choices([[1, 2], [1, 3], [3, 4, 5, 6]])
    count = OverlapBound(0.0, share=0.3, fill="cost")
    assert revealed(table, count, budget=2) == [[0, 2], [1]]
    assert revealed(table, replace(count, share=0.4), budget=2) == [[0, 1], [2]]


@pytest.mark.parametrize("remask", ["", "+remdm-cap:eta=0.2"])
def test_nobody_is_asked_to_rank_where_the_count_fills_up_by_itself(remask: str) -> None:
    # Remasking raises the budget by what it takes back.
    done = generate(
        FakeDenoiser(table_of_choices([[1, 2]] * 40)),
        torch.full((40,), MASK),
        f"boe:tolerance=none,sure=none+overlap:fill=cost{remask}",
        budget=TokensPerStep(4),
    )
    assert done.total.n_backward == 0


def test_with_slack_the_most_open_of_what_is_about_as_likely_wrong_comes_first() -> None:
    # Wrong with ½, ⅔ and ¾; one position a step.
    table = table_of_choices([[1, 2], [1, 2, 3], [1, 2, 3, 4]])
    count = OverlapBound(0.0, floor=0.99)
    assert revealed(table, count) == [[0], [1], [2]]
    assert revealed(table, replace(count, slack=0.4)) == [[1], [0], [2]]
    assert revealed(table, replace(count, slack=math.inf)) == [[2], [1], [0]]
    # What is sure comes before it, and what is due beside that is it again.
    table = table_of_choices([[1, 2], [3], [1, 2, 3, 4]])
    assert revealed(table, replace(count, slack=math.inf, early=0.0)) == [[1], [2], [0]]
    assert revealed(table, replace(count, slack=math.inf)) == [[1, 2], [0]]
    assert revealed(table, count) == [[0, 1], [2]]


class UnreadablePadding(FakeDenoiser):
    """Its logits at padding are NaN."""

    def predict(self, canvas: Canvas, positions: Tensor, keep: str = "nothing") -> Prediction:
        prediction = super().predict(canvas, positions, keep)
        logits = prediction.logits.masked_fill((positions < 0).unsqueeze(-1), torch.nan)
        return replace(prediction, logits=logits)


def test_a_sequence_counts_the_same_in_a_batch_whose_padding_holds_anything() -> None:
    denoiser = UnreadablePadding(table_of_choices([[1, 2]] * 6))
    canvases = [torch.full((length,), MASK) for length in (3, 6)]
    # A second position costs ln 2, a third twice that.
    together = generate(denoiser, canvases, "overlap:gamma=0.8", trajectory=True)
    steps = [[r.revealed.tolist() for r in item.trajectory] for item in together.items]
    assert steps == [[[0, 1], [2]], [[0, 1], [2, 3], [4, 5]]]
    for canvas, item in zip(canvases, together.items, strict=True):
        alone = generate(denoiser, canvas, "overlap:gamma=0.8").items[0]
        assert alone.account.nfe_forward == item.account.nfe_forward


@pytest.mark.parametrize(
    "count", ["gamma=0,share=0.1,fill=cost", "gamma=0,floor=0.99,early=0,slack=inf,fill=cost"]
)
def test_padding_decides_neither_what_fills_up_nor_what_comes_first(count: str) -> None:
    choices = [[1, 2, 3, 4], [3], [1, 2], [1, 2], [5], [4, 5, 6]]
    denoiser = UnreadablePadding(table_of_choices(choices))
    canvases = [torch.full((length,), MASK) for length in (3, 6)]

    def steps(canvas: Tensor | list[Tensor]) -> list[list[list[int]]]:
        done = generate(
            denoiser, canvas, f"overlap:{count}", budget=TokensPerStep(2), trajectory=True
        )
        return [[r.revealed.tolist() for r in item.trajectory] for item in done.items]

    assert steps(canvases) == [steps(canvas)[0] for canvas in canvases]


def test_a_large_batch_is_counted_part_by_part_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of_choices([[1, 2], [2, 3], [4], [1, 3], [5, 6]])
    # Each sequence lacks another of the five masks.
    canvas = torch.full((5, 5), MASK) + 6 * torch.eye(5, dtype=torch.int64)

    def steps() -> list[list[list[int]]]:
        done = generate(FakeDenoiser(table), canvas, "overlap:gamma=0.8", trajectory=True)
        return [[r.revealed.tolist() for r in item.trajectory] for item in done.items]

    whole = steps()
    assert len({str(rows) for rows in whole}) == 5
    monkeypatch.setattr(overlapping, "_ELEMENTS", 2 * 4 * table.shape[1])
    assert steps() == whole


def test_boe_takes_no_gradient_where_the_count_finds_the_whole_budget() -> None:
    table = table_of_choices([[1, 2]] * 8)
    steering = "boe:tolerance=none,sure=none"
    found = generate(FakeDenoiser(table), torch.full((8,), MASK), f"{steering}+overlap")
    assert found.total.n_backward == 0
    filled = generate(
        FakeDenoiser(table),
        torch.full((8,), MASK),
        f"{steering}+overlap",
        budget=TokensPerStep(2),
    )
    assert filled.total.n_backward > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -0.1}, "gamma must be finite and not negative, got -0.1"),
        ({"gamma": math.inf}, "gamma must be finite and not negative, got inf"),
        ({"share": -0.1}, r"share must be in \[0, 1\], got -0.1"),
        ({"floor": 1.5}, r"floor must be in \[0, 1\], got 1.5"),
        ({"floor": math.nan}, r"floor must be in \[0, 1\], got nan"),
        ({"early": 2.0}, r"early must be in \[0, 1\], got 2.0"),
        ({"fill": "boe"}, "fill must be 'ranking' or 'cost', got 'boe'"),
        ({"slack": -0.1, "floor": 0.9}, "slack must not be negative, got -0.1"),
        ({"slack": 0.1}, "slack needs a floor above 0"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OverlapBound(**options)
