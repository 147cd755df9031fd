"""Naive lookahead, against enumeration on an ideal denoiser."""

from __future__ import annotations

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, JointDenoiser, table_of
from torch import Tensor

from boe import TokensPerStep, generate, sampler_from
from boe.samplers import Lookahead


def joint(seed: int = 1) -> JointDenoiser:
    generator = torch.Generator().manual_seed(seed)
    return JointDenoiser(torch.rand((3,) * 5, generator=generator) ** 3)


def first_step(sampler: Lookahead, denoiser: JointDenoiser, canvas: Tensor, **options: object):
    item = generate(denoiser, canvas, sampler, trajectory=True, **options).items[0]
    return item.trajectory[0], item


def entropies(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(1e-300).log()).sum(dim=-1)


def gain_by_enumeration(denoiser: JointDenoiser, canvas: Tensor, i: int, tokens: int) -> float:
    """Σ_{j ≠ i} H_j now, less the same after writing i, weighted over its likeliest tokens."""
    masks = [j for j in range(len(canvas)) if int(canvas[j]) == MASK and j != i]
    p = denoiser.conditionals(canvas.unsqueeze(0))[0]
    best = p[i].argsort(descending=True)[:tokens]
    weights = p[i, best] / p[i, best].sum()
    after = 0.0
    for token, weight in zip(best, weights, strict=True):
        written = canvas.clone()
        written[i] = token
        left = entropies(denoiser.conditionals(written.unsqueeze(0))[0])
        after += float(weight) * float(left[masks].sum())
    return float(entropies(p)[masks].sum()) - after


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_the_score_is_the_fall_of_the_others_entropy(tokens: int) -> None:
    denoiser = joint()
    canvas = torch.tensor([MASK, 2, MASK, MASK, MASK])
    sampler = Lookahead(candidates="all", tokens=tokens)
    record, _ = first_step(sampler, denoiser, canvas)
    expected = [gain_by_enumeration(denoiser, canvas, i, tokens) for i in (0, 2, 3, 4)]
    assert record.scores.tolist() == pytest.approx(expected)
    assert record.parts["gain"].tolist() == pytest.approx(expected)
    best = max(range(4), key=lambda k: expected[k])
    assert record.revealed.tolist() == [[0, 2, 3, 4][best]]


def test_over_all_tokens_the_expected_fall_is_the_mutual_information_and_never_negative() -> None:
    denoiser = joint(2)
    record, _ = first_step(Lookahead(candidates="all", tokens=9), denoiser, torch.zeros(5).long())
    assert bool((record.scores > -1e-12).all())
    # I(X_0; X_j) from the joint itself, for the sum over j.
    joint_p = denoiser.probabilities.view((3,) * 5)
    information = 0.0
    for j in range(1, 5):
        pair = joint_p.sum(dim=[k for k in range(1, 5) if k != j])
        outer = pair.sum(dim=1, keepdim=True) * pair.sum(dim=0, keepdim=True)
        information += float((pair * (pair / outer).log()).sum())
    assert float(record.scores[0]) == pytest.approx(information)


def test_candidates_are_chosen_as_boe_chooses_them_and_the_rest_scores_minus_infinity() -> None:
    denoiser = FakeDenoiser(table_of([0.9, 0.3, 0.8, 0.4, 0.7]))
    canvas = torch.full((5,), MASK)
    item = generate(denoiser, canvas, "lookahead:rho=0.5", trajectory=True).items[0]
    first = item.trajectory[0]
    assert first.positions[first.scores > -torch.inf].tolist() == [0, 2, 4]
    close = generate(denoiser, canvas, "lookahead:rho=1,tolerance=0.11", trajectory=True).items[0]
    first = close.trajectory[0]
    assert first.positions[first.scores > -torch.inf].tolist() == [0, 2]


@pytest.mark.parametrize(("options", "per_candidate"), [({}, 1), ({"tokens": 2}, 2)])
def test_every_candidate_costs_a_forward_per_token(options: dict, per_candidate: int) -> None:
    denoiser = joint()
    sampler = Lookahead(candidates="all", **options)
    _, item = first_step(sampler, denoiser, torch.zeros(5).long())
    # 5, 4, 3, 2 candidates; the last step has no choice.
    assert item.account.nfe_forward == 5 + per_candidate * (5 + 4 + 3 + 2)
    assert sum(canvas.batch for canvas in denoiser.canvases) == item.account.nfe_forward


def test_impossible_tokens_are_not_tried() -> None:
    p = torch.tensor([[0.0, 0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]]).double()
    denoiser = FakeDenoiser(p.log())
    sampler = Lookahead(candidates="all", tokens=4)
    item = generate(denoiser, torch.full((2,), MASK), sampler).items[0]
    assert item.account.nfe_forward == 2 + (2 + 1)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_the_chunk_size_bounds_a_forward_and_changes_nothing_else(chunk: int) -> None:
    denoiser, whole = joint(), joint()
    canvas = torch.zeros(5).long()
    small = generate(denoiser, canvas, Lookahead(candidates="all", chunk=chunk), trajectory=True)
    large = generate(whole, canvas, Lookahead(candidates="all"), trajectory=True)
    assert max(c.batch for c in denoiser.canvases) == min(chunk, 5)
    for a, b in zip(small.items[0].trajectory, large.items[0].trajectory, strict=True):
        torch.testing.assert_close(a.scores, b.scores)
        assert a.revealed.tolist() == b.revealed.tolist()


def test_several_reveals_a_step_take_the_best_ranked() -> None:
    denoiser, canvas = joint(), torch.zeros(5).long()
    record, _ = first_step(Lookahead(candidates="all"), denoiser, canvas, budget=TokensPerStep(2))
    gains = [gain_by_enumeration(denoiser, canvas, i, 1) for i in range(5)]
    assert record.revealed.tolist() == sorted(sorted(range(5), key=lambda k: -gains[k])[:2])


def joint_picks(denoiser: JointDenoiser, canvas: Tensor, count: int, pool: list[int]) -> list[int]:
    """By hand: the surest of ``pool``, then always what leaves the other masks surest."""
    p = denoiser.conditionals(canvas.unsqueeze(0))[0]
    tokens = p.argmax(dim=1)
    picks = [max(pool, key=lambda k: float(p[k].max()))]
    while len(picks) < count:
        left = {}
        for k in set(pool) - set(picks):
            written = canvas.clone()
            written[[*picks, k]] = tokens[[*picks, k]]
            after = entropies(denoiser.conditionals(written.unsqueeze(0))[0])
            others = [j for j in range(len(canvas)) if int(written[j]) == MASK]
            # What the pick's own entropy was counts for it, as it does alone.
            left[k] = float(after[others].sum() + entropies(p)[k])
        picks.append(min(left, key=lambda k: left[k]))
    return picks


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_joint_picks_are_tried_beside_those_that_were_taken_before(count: int, seed: int) -> None:
    denoiser, canvas = joint(seed), torch.zeros(5).long()
    sampler = Lookahead(candidates="all", joint=True)
    record, _ = first_step(sampler, denoiser, canvas, budget=TokensPerStep(count))
    expected = joint_picks(joint(seed), canvas, count, list(range(5)))
    assert record.scores.argsort(descending=True)[:count].tolist() == expected
    assert record.revealed.tolist() == sorted(expected)


def test_joint_picks_avoid_what_repeats_and_what_contradicts_a_pick() -> None:
    # Positions 0 and 1 are the same fair coin, 2 and 3 another; 4 is surer, and alone.
    coin = torch.zeros(2, 2, 2, 2, 2).double()
    for a in range(2):
        for b in range(2):
            coin[a, a, b, b] = torch.tensor([0.6, 0.4])
    canvas = torch.zeros(5).long()
    budget = TokensPerStep(3)
    sampler = Lookahead(candidates="all", joint=True)
    record, _ = first_step(sampler, JointDenoiser(coin), canvas, budget=budget)
    assert record.revealed.tolist() == [0, 2, 4], "a coin each, and not its twin"
    alone, _ = first_step(Lookahead(candidates="all"), JointDenoiser(coin), canvas, budget=budget)
    assert alone.revealed.tolist() == [0, 1, 2], "one by one a twin is as good as the first"


def test_joint_picks_cost_a_try_per_candidate_for_every_reveal_but_the_first() -> None:
    sampler = Lookahead(candidates="all", joint=True)
    _, item = first_step(sampler, joint(), torch.zeros(5).long(), budget=TokensPerStep(2))
    # Steps of five, three and one masks; of three, two are revealed after two tries.
    assert item.account.nfe_forward == 3 + 4 + 2
    _, single = first_step(sampler, joint(), torch.zeros(5).long())
    assert single.account.nfe_forward == 5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lookahead:tokens=0", "tokens must be at least 1, got 0"),
        ("lookahead:chunk=0", "chunk must be at least 1, got 0"),
        ("lookahead:rho=0", r"rho must be in \(0, 1\], got 0\.0"),
        ("lookahead:candidates=some", "candidates must be one of confidence, margin"),
        ("lookahead:tolerance=2", r"tolerance must be in \[0, 1\], got 2\.0"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_from(spec)
