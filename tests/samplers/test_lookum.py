"""LookUM: pools, paths, verdicts, and whose forward serves whom."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, JointDenoiser, table_of
from torch import Tensor

from boe import TokensPerStep, generate, sampler_from
from boe.samplers import LookUM

CONFIDENCES = [0.9, 0.3, 0.8, 0.4, 0.7, 0.5, 0.6, 0.35]


def blank(length: int) -> Tensor:
    return torch.full((length,), MASK)


def joint(seed: int = 1) -> JointDenoiser:
    generator = torch.Generator().manual_seed(seed)
    return JointDenoiser(torch.rand((3,) * 5, generator=generator) ** 3)


def mean_entropy_after(denoiser: JointDenoiser, canvas: Tensor, places: tuple[int, ...]) -> float:
    p = denoiser.conditionals(canvas.unsqueeze(0))[0]
    written = canvas.clone()
    for place in places:
        written[place] = p[place].argmax()
    left = denoiser.conditionals(written.unsqueeze(0))[0]
    entropy = -(left * left.clamp_min(1e-300).log()).sum(dim=-1)
    return float(entropy[written == MASK].mean())


def test_with_all_pairs_as_paths_the_one_that_leaves_the_least_entropy_wins() -> None:
    # 400 draws out of a hot pool hold every pair; at path temperature 0 the best one wins.
    sampler = LookUM(paths=400, pool=5, pool_temperature=100.0, path_temperature=0.0)
    for seed in range(3):
        denoiser = joint(seed)
        canvas = torch.zeros(5).long()
        item = generate(
            denoiser, canvas, sampler, budget=TokensPerStep(2), seed=seed, trajectory=True
        ).items[0]
        pairs = {
            pair: mean_entropy_after(denoiser, canvas, pair)
            for pair in itertools.combinations(range(5), 2)
        }
        assert tuple(item.trajectory[0].revealed.tolist()) == min(pairs, key=pairs.get)


def test_a_path_is_chosen_with_softmax_chance() -> None:
    # One token a step, from a pool of two drawn with equal chances.
    denoiser = joint(3)
    canvas = torch.tensor([1, MASK, MASK, 2, MASK])
    tau, count = 0.05, 800
    sampler = LookUM(
        paths=2, pool=2, pool_temperature=1e9, path_temperature=tau, certainty="confidence"
    )
    canvases = canvas.expand(count, -1)
    result = generate(denoiser, canvases, sampler, seed=4, trajectory=True)
    first = torch.tensor([int(item.trajectory[0].revealed) for item in result.items])
    p = denoiser.conditionals(canvas.unsqueeze(0))[0]
    ranked = sorted((1, 2, 4), key=lambda j: -float(p[j].max()))
    a, b = ranked[:2]
    value = {j: math.exp(-mean_entropy_after(denoiser, canvas, (j,)) / tau) for j in (a, b)}
    # Both paths a, both b, or one of each: a quarter, a quarter, a half.
    chance = 0.25 + 0.5 * value[a] / (value[a] + value[b])
    assert set(first.tolist()) == {a, b}
    spread = math.sqrt(count * chance * (1 - chance))
    assert abs(int((first == a).sum()) - count * chance) < 4 * spread
    assert abs(chance - 0.5) * count > 4 * spread, "the case tells a verdict from a coin"


@pytest.mark.parametrize(
    ("options", "budget", "expected"),
    [
        ({"pool": 3}, 1, {0, 2, 4}),
        ({"pool": 1}, 2, {0, 2}),  # never fewer than are revealed
        ({"threshold": 0.65}, 1, {0, 2, 4}),
        ({"threshold": 0.99}, 2, {0, 2}),
        ({"pool": 3, "certainty": "entropy"}, 1, {0, 2, 4}),
        ({"pool": 3, "certainty": "margin"}, 1, {0, 2, 4}),
    ],
)
def test_sets_are_drawn_from_the_pool(options: dict, budget: int, expected: set[int]) -> None:
    seen: set[int] = set()
    for seed in range(12):
        item = generate(
            FakeDenoiser(table_of(CONFIDENCES)),
            blank(8),
            LookUM(pool_temperature=10.0, **options),
            budget=TokensPerStep(budget),
            seed=seed,
            trajectory=True,
        ).items[0]
        record = item.trajectory[0]
        assert record.positions[record.parts["pool"]].tolist() == sorted(expected)
        seen |= set(record.revealed.tolist())
    assert seen == expected


def test_a_cold_pool_is_confidence() -> None:
    for spec in ("lookum:pool_temperature=0", "lookum:paths=1,pool_temperature=0"):
        item = generate(FakeDenoiser(table_of(CONFIDENCES)), blank(8), spec, trajectory=True).items[
            0
        ]
        order = [int(record.revealed) for record in item.trajectory]
        assert order == sorted(range(8), key=lambda k: -CONFIDENCES[k])


def test_the_first_path_can_be_the_greedy_one() -> None:
    sampler = LookUM(paths=1, pool=8, pool_temperature=100.0, greedy_first=True)
    item = generate(FakeDenoiser(table_of(CONFIDENCES)), blank(8), sampler, trajectory=True)
    assert [int(r.revealed) for r in item.items[0].trajectory[:2]] == [0, 2]


@pytest.mark.parametrize(
    ("options", "forwards"),
    [
        # Steps with a choice: 4 of 5. Each runs its paths, and the winner's forward is next.
        ({}, 1 + 2 * 4),
        ({"paths": 3}, 1 + 3 * 4),
        ({"reuse": False}, 5 + 2 * 4),
        ({"paths": 1}, 5),
        ({"span": "generated"}, 1 + 2 * 4),
        ({"verifier": "confidence"}, 1 + 2 * 4),
    ],
)
def test_a_step_costs_its_paths_and_reuse_saves_the_steps_own_forward(
    options: dict, forwards: int
) -> None:
    denoiser = joint()
    item = generate(denoiser, torch.zeros(5).long(), LookUM(**options)).items[0]
    assert item.account.nfe_forward == forwards
    assert sum(canvas.batch for canvas in denoiser.canvases) == forwards


@pytest.mark.parametrize("span", ["masked", "generated"])
def test_a_reused_forward_changes_no_decision(span: str) -> None:
    canvas = torch.tensor([MASK, MASK, 2, MASK, MASK])
    options = {"budget": TokensPerStep(1), "trajectory": True, "temperature": 1.0}
    for seed in range(4):
        a, b = (
            generate(joint(5), canvas, LookUM(reuse=reuse, span=span), seed=seed, **options)
            for reuse in (True, False)
        )
        assert torch.equal(a.sequences[0], b.sequences[0])
        for ours, theirs in zip(a.items[0].trajectory, b.items[0].trajectory, strict=True):
            assert ours.revealed.tolist() == theirs.revealed.tolist()
            torch.testing.assert_close(ours.entropy, theirs.entropy)


def test_the_span_of_all_generated_positions_counts_written_ones_too() -> None:
    # The masked ones alone prefer one path, all generated ones another, for some case.
    different = 0
    for seed in range(8):
        picks = []
        for span in ("masked", "generated"):
            sampler = LookUM(
                paths=60, pool=4, pool_temperature=100.0, path_temperature=0.0, span=span
            )
            item = generate(
                joint(seed), torch.tensor([3, 0, 0, 0, 0]), sampler, seed=seed, trajectory=True
            ).items[0]
            picks.append([r.revealed.tolist() for r in item.trajectory])
        different += picks[0] != picks[1]
    assert different > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lookum:paths=0", "paths must be at least 1, got 0"),
        ("lookum:pool=0", "pool must be at least 1, got 0"),
        ("lookum:verifier=other", "verifier must be one of entropy, confidence"),
        ("lookum:span=other", "span must be one of masked, generated"),
        ("lookum:certainty=other", "certainty must be one of confidence, margin, entropy"),
        ("lookum:path_temperature=-1", "path_temperature must be finite and not negative"),
        ("lookum:threshold=nan", "threshold must be finite, got nan"),
        ("lookum:threshold=0.9,pool=7", "pool=7 has no effect: it needs threshold=None"),
        ("lookum:paths=1,verifier=confidence", "verifier='confidence' has no effect: it needs pa"),
        (
            "lookum:pool_temperature=0,greedy_first=true",
            "greedy_first=True has no effect: it needs pool_temperature > 0",
        ),
        ("lookum:paths=1,path_temperature=1", "path_temperature=1.0 has no effect: it needs pat"),
        ("lookum+eb", "count='eb' needs a policy that ranks positions; lookum decides itself"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_from(spec)
