"""BoE's lookahead among its best candidates, against enumeration on an ideal denoiser."""

from __future__ import annotations

import pytest
import torch
from fake_denoiser import MASK, JointDenoiser
from tiny_models import random_words, tiny_denoiser
from torch import Tensor

from boe import BoE, TokensPerStep, generate, sampler_from
from boe.canvas import Canvas
from boe.decoding import StepRecord
from boe.denoisers import Prediction

# What the gradient claims, position by position: 2, 0 and 3 lead.
CLAIMED = torch.tensor([2.0, 0.5, 2.5, 1.9, 0.0]).double()


class Foreseeing(JointDenoiser):
    """An ideal denoiser whose frozen context is no approximation."""

    def predict_changed(
        self, prediction: Prediction, which: Tensor, canvas: Canvas, positions: Tensor, rows: Tensor
    ) -> Prediction:
        return self.predict(canvas, positions)


def joint(seed: int = 1) -> Foreseeing:
    generator = torch.Generator().manual_seed(seed)
    denoiser = Foreseeing(torch.rand((3,) * 5, generator=generator) ** 3)
    denoiser.influence = CLAIMED
    return denoiser


def entropies(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(1e-300).log()).sum(dim=-1)


def true_fall(denoiser: JointDenoiser, i: int) -> float:
    """Σ_{j≠i} I(X_i; X_j) of an empty canvas, by enumeration of all three tokens."""
    empty = torch.full((5,), MASK)
    p = denoiser.conditionals(empty.unsqueeze(0))[0]
    others = [j for j in range(5) if j != i]
    after = 0.0
    for token in (1, 2, 3):
        written = empty.clone()
        written[i] = token
        left = entropies(denoiser.conditionals(written.unsqueeze(0))[0])[others].sum()
        after += float(p[i, token] * left)
    return float(entropies(p)[others].sum()) - after


def first_step(budget: int = 1, **options: object) -> StepRecord:
    sampler = BoE(
        **{
            **{"candidates": "all", "probes": "masked", "tolerance": None, "sure": None},
            **{"lookahead_tokens": 3},
            **options,
        }
    )
    canvas = torch.full((5,), MASK)
    return (
        generate(joint(), canvas, sampler, budget=TokensPerStep(budget), trajectory=True)
        .items[0]
        .trajectory[0]
    )


@pytest.mark.parametrize(("lookahead", "shortlist"), [(2, [0, 2]), (3, [0, 2, 3]), (9, range(5))])
def test_the_best_scored_are_ranked_by_their_true_expected_fall(lookahead, shortlist) -> None:
    record = first_step(lookahead=lookahead)
    members = list(shortlist)
    assert record.positions[record.parts["shortlist"]].tolist() == members
    falls = [true_fall(joint(), i) for i in members]
    assert record.scores[members].tolist() == pytest.approx(falls)
    best = max(range(len(members)), key=lambda k: falls[k])
    assert record.revealed.tolist() == [members[best]]


def test_the_others_follow_the_shortlist_in_the_order_of_their_scores() -> None:
    record = first_step(lookahead=2)
    lowest = float(record.scores[[0, 2]].min())
    rest = record.scores[[3, 1, 4]]
    assert rest.tolist() == pytest.approx([lowest - 1.0, lowest - 2.4, lowest - 2.9])


@pytest.mark.parametrize(("budget", "shortlist"), [(1, [0, 2]), (2, [0, 2, 3]), (3, [0, 1, 2, 3])])
def test_of_several_reveals_the_last_one_is_contested(budget: int, shortlist: list[int]) -> None:
    record = first_step(budget, lookahead=2)
    assert record.positions[record.parts["shortlist"]].tolist() == shortlist
    falls = {i: true_fall(joint(), i) for i in shortlist}
    best = sorted(shortlist, key=lambda i: -falls[i])[:budget]
    assert sorted(record.revealed.tolist()) == sorted(best)


@pytest.mark.parametrize(
    ("close", "budget", "decides"),
    [
        (None, 1, True),
        (0.51, 1, True),  # 2.5 against 2.0
        (0.49, 1, False),
        (0.11, 2, True),  # 2.0 against 1.9
        (0.09, 2, False),
    ],
)
def test_only_scores_that_are_close_are_decided(close, budget, decides) -> None:
    record = first_step(budget, lookahead=2, close=close)
    assert ("shortlist" in record.parts) == decides
    if not decides:
        torch.testing.assert_close(record.scores, CLAIMED)


def test_a_decision_costs_the_masked_rows_of_every_try() -> None:
    costs = []
    sampler = BoE(rho=0.6, tolerance=None, sure=None, lookahead=2, lookahead_tokens=2)
    generate(
        joint(),
        torch.full((5,), MASK),
        sampler,
        on_step=lambda _, item: costs.append(item.account.flop_equiv),
    )
    # A forward, a replay and a backward of five rows, two tokens tried at each of two.
    assert costs[0] == pytest.approx(1 + 2 + 2 * 2)


def test_certainty_weighs_in_the_estimates_but_not_in_what_was_tried_out() -> None:
    record = first_step(lookahead=2, certainty=1.0)
    members = record.positions[record.parts["shortlist"]].tolist()
    falls = [true_fall(joint(), i) for i in members]
    assert record.scores[members].tolist() == pytest.approx(falls)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("boe:lookahead=1", "lookahead must be 0 or at least 2"),
        ("boe:lookahead=-2", "lookahead must be 0 or at least 2"),
        ("boe:lookahead_tokens=0", "lookahead_tokens must be at least 1, got 0"),
        ("boe:close=0.1", r"close=0\.1 has no effect: it needs lookahead, got lookahead=0"),
        ("boe:lookahead=2,close=-1", r"close must be finite and not negative, got -1\.0"),
        ("boe:lookahead=2,gate=paper", "lookahead=2 compares falls of entropy in nats"),
        ("boe:lookahead=2,penalty=1", "lookahead=2 compares falls of entropy in nats"),
        ("boe:lookahead=2,normalise=zscore", "lookahead=2 compares falls of entropy in nats"),
        ("boe:lookahead=2,engine=dense,context=full", "lookahead=2 runs rows against kept keys"),
    ],
)
def test_a_lookahead_that_contradicts_other_options_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_from(spec)


def test_under_guidance_the_lookahead_needs_the_gradient_of_both_branches() -> None:
    canvas = random_words(10, [1, 2, 4, 6, 7, 8])
    options = {"rho": 0.5, "tolerance": None, "sure": None, "lookahead": 2}
    with pytest.raises(ValueError, match="guidance_gradient='combined'"):
        generate(tiny_denoiser("bert"), canvas, BoE(**options), guidance=1.0)
    both = BoE(**options, guidance_gradient="combined")
    record = generate(tiny_denoiser("bert"), canvas, both, guidance=1.0, trajectory=True)
    assert int(record.items[0].trajectory[0].parts["shortlist"].sum()) == 2
