"""ReMDM's remasking rules: how often tokens go, with ancestral and with ranking samplers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, table_of

from boe import TokensPerStep, generate, sampler_from
from boe.decoding import StepRecord

LONG = 20_000
END = 1e-5


def decode(spec: str, length: int = LONG, **options: object) -> list[StepRecord]:
    denoiser = FakeDenoiser(table_of([0.7] * length))
    canvas = torch.full((length,), MASK)
    return generate(denoiser, canvas, spec, trajectory=True, **options).items[0].trajectory


def agrees(count: int, trials: int, chance: float) -> bool:
    """Within four standard deviations of a binomial."""
    spread = math.sqrt(max(trials * chance * (1 - chance), 1e-12))
    return abs(count - trials * chance) <= 4 * spread + 1e-6


def times(steps: int) -> list[tuple[float, float]]:
    width = (1 - END) / steps
    return [(1 - k * width, 1 - (k + 1) * width) for k in range(steps)]


def sigma_of(rule: str, t: float, s: float) -> float:
    if rule == "cap":
        return min(0.4, s / (1 - t)) if t < 1 else 0.4
    if rule == "rescale":
        return 0.4 * (min(1.0, s / (1 - t)) if t < 1 else 1.0)
    return (t - s) / (1 - t) if t < 1 else 1.0


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("mdlm:steps=5+remdm-cap:eta=0.4", "cap"),
        ("mdlm:steps=5+remdm-rescale:eta=0.4", "rescale"),
        ("mdlm:steps=5+fb", "fb"),
    ],
)
def test_every_step_reveals_and_remasks_with_the_chances_of_the_kernel(
    spec: str, rule: str
) -> None:
    observed, records = 0, decode(spec)
    assert len(records) >= 5
    for record, (t, s) in zip(records, times(5), strict=False):
        sigma = sigma_of(rule, t, s)
        reveal = (1 - s - (1 - sigma) * (1 - t)) / t
        # The forward-backward corrector's mask weight is negative in the last step.
        assert rule != "fb" or (reveal > 1) == (s < END * 2)
        assert agrees(len(record.revealed), LONG - observed, min(reveal, 1.0))
        assert agrees(len(record.remasked), observed, sigma)
        observed += len(record.revealed) - len(record.remasked)


def test_the_loop_remasks_only_between_its_times_and_there_keeps_the_number_of_masks() -> None:
    spec = "mdlm:steps=20+remdm-loop:eta=0.05,t_on=0.6,t_off=0.2,alpha_on=0.8"
    observed, remasked_at, records = 0, [], decode(spec)
    assert len(records) >= 20
    for record, (t, _) in zip(records, times(20), strict=False):
        if len(record.remasked):
            remasked_at.append(t)
            assert agrees(len(record.remasked), observed, 0.05)
            assert agrees(len(record.revealed), LONG - observed, 0.05 * 0.8 / 0.2)
        observed += len(record.revealed) - len(record.remasked)
    inside = [t for t, _ in times(20) if 0.2 < t <= 0.6]
    assert remasked_at == pytest.approx(inside)


def test_confidence_remasking_weighs_tokens_by_how_unsure_they_were_when_revealed() -> None:
    # Half the positions are certain, half are coin flips: σ ∝ exp(−p).
    half = 1000
    p = torch.zeros(2 * half, 4, dtype=torch.float64)
    p[:half, 1] = 1.0
    p[half:, 1:3] = 0.5
    records = (
        generate(
            FakeDenoiser(p.log()),
            torch.full((2 * half,), MASK),
            "mdlm:steps=300+remdm-conf",
            trajectory=True,
        )
        .items[0]
        .trajectory
    )
    assert len(records) >= 300
    remasked, expected = [0, 0], [0.0, 0.0]
    seen = torch.zeros(2 * half, dtype=torch.bool)
    for record, (t, s) in zip(records, times(300), strict=False):
        # σ sums to at most 1 over the sequence: about one token goes per step.
        weights = [int(seen[:half].sum()) * math.exp(-1.0), int(seen[half:].sum()) * math.exp(-0.5)]
        largest = min(1.0, s / (1 - t)) if t < 1 else 1.0
        for part in range(2):
            if sum(weights):
                expected[part] += largest * weights[part] / sum(weights)
            remasked[part] += int(((record.remasked >= half) == bool(part)).sum())
        seen[record.remasked] = False
        seen[record.revealed] = True
    assert min(expected) > 50
    for part in range(2):
        assert abs(remasked[part] - expected[part]) < 4 * math.sqrt(expected[part])
    assert remasked[1] > 1.3 * remasked[0]


def test_confidence_under_a_nucleus_is_that_of_the_truncated_distribution() -> None:
    # A nucleus of 0.75 holds one token of 0.7, which is then drawn with certainty.
    records = decode("mdlm:steps=4+remdm-conf+tokens:top_p=0.75", length=50)
    ids = {int(k): int(v) for r in records for k, v in zip(r.revealed, r.tokens, strict=True)}
    assert ids == {k: 1 + k % 5 for k in range(50)}


# --- with ranking samplers ------------------------------------------------------------


def masks_left(records: list[StepRecord]) -> list[int]:
    return [len(record.positions) for record in records]


@pytest.mark.parametrize("rule", ["remdm-cap:eta=0.3", "remdm-rescale:eta=0.3", "fb", "remdm-conf"])
@pytest.mark.parametrize("which", ["confidence", "boe:tolerance=none,rho=0.5", "random"])
def test_a_ranking_sampler_keeps_its_pace_by_revealing_as_many_more(which: str, rule: str) -> None:
    records = decode(f"{which}+{rule}", length=24, budget=TokensPerStep(4))
    assert masks_left(records) == [24, 20, 16, 12, 8, 4]
    assert [len(r.revealed) - len(r.remasked) for r in records] == [4] * 6
    assert sum(len(r.remasked) for r in records) > 0
    assert len(records[-1].remasked) == 0


def test_adaptive_counts_reveal_more_than_is_taken_back() -> None:
    # Few tokens are ready at a time, and nearly all written ones go in every step.
    confidences = [0.95, 0.9] + [0.3] * 18
    denoiser = FakeDenoiser(table_of(confidences))
    for spec in ("klass:confidence=0.8,history=1", "threshold:value=0.85", "eb:gamma=0.1"):
        item = generate(
            denoiser, torch.full((20,), MASK), f"{spec}+remdm-rescale:eta=1", trajectory=True
        ).items[0]
        left = masks_left(item.trajectory)
        assert all(after < before for before, after in itertools.pairwise(left))
        assert sum(len(r.remasked) for r in item.trajectory) > 10


def test_the_share_of_masks_is_the_time_of_a_ranking_sampler() -> None:
    records = decode("random+remdm-rescale:eta=0.5", budget=TokensPerStep(LONG // 5))
    for k, record in enumerate(records):
        observed, left = LONG * k // 5, LONG - LONG * k // 5
        sigma = 0.5 * min(1.0, (left - LONG // 5) / observed) if k else 0.0
        assert agrees(len(record.remasked), observed, sigma)


def test_a_token_may_come_back_as_another_one() -> None:
    records = decode(
        "random+remdm-rescale:eta=0.5", length=200, budget=TokensPerStep(40), temperature=1.0
    )
    written: dict[int, list[int]] = {}
    for record in records:
        for place, token in zip(record.revealed.tolist(), record.tokens.tolist(), strict=True):
            written.setdefault(place, []).append(token)
    assert any(len(set(tokens)) > 1 for tokens in written.values())


def test_only_the_current_blocks_own_tokens_are_taken_back() -> None:
    canvas = torch.full((20,), MASK)
    canvas[::5] = 3
    denoiser = FakeDenoiser(table_of([0.5] * 20))
    item = generate(
        denoiser,
        canvas,
        "random+remdm-rescale:eta=1",
        block_length=8,
        budget=TokensPerStep(2),
        trajectory=True,
    ).items[0]
    assert sum(len(r.remasked) for r in item.trajectory) > 0
    assert item.ids[::5].tolist() == [3] * 4
    for record in item.trajectory:
        lowest = int(record.positions.min())
        start = 1 + (lowest - 1) // 8 * 8
        assert all(start <= place < start + 8 for place in record.remasked.tolist())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("remdm-cap:eta=1.5", r"eta must be in \[0, 1\], got 1\.5"),
        ("remdm-rescale:eta=-0.1", r"eta must be in \[0, 1\], got -0\.1"),
        ("remdm-loop:t_on=0.1,t_off=0.2", "t_off and t_on must be 0 < t_off < t_on < 1"),
        ("remdm-loop:alpha_on=1", r"alpha_on must be in \(0, 1\), got 1\.0"),
    ],
)
def test_rules_out_of_range_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_from(spec)
