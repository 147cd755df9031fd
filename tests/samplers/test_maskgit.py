"""MaskGIT's schedule and noisy confidence."""

from __future__ import annotations

import math

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, table_of

from boe import TokensPerStep, generate, sampler_from
from boe.samplers import MaskGIT


def masks_left(length: int, steps: int) -> list[int]:
    """The original's rule: after step k of T, clamp(⌊n·ratio⌋, 1, unknown − 1) masks."""
    left, unknown = [], length
    for k in range(steps):
        ratio = max(math.cos(math.pi / 2 * (k + 1) / steps), 1e-6)
        unknown = max(1, min(math.floor(length * ratio), unknown - 1))
        left.append(unknown)
    return [*left[:-1], 0]  # the last step keeps every sampled token


@pytest.mark.parametrize(("length", "steps"), [(64, 12), (64, 8), (20, 6), (5, 4), (7, 3), (6, 12)])
def test_the_schedule_is_the_originals(length: int, steps: int) -> None:
    plan = MaskGIT(steps=steps).plan((1,) * length)
    left = [length - sum(plan[: k + 1]) for k in range(len(plan))]
    original = masks_left(length, steps)
    # Where the original waits with a single mask left, that mask is revealed instead.
    waited = original.index(1) if 1 in original else len(original) - 1
    assert left[:waited] == original[:waited]
    assert left[-1] == 0


def test_the_budget_gives_the_number_of_steps() -> None:
    denoiser = FakeDenoiser(table_of([0.5] * 40))
    canvas = torch.full((40,), MASK)
    result = generate(denoiser, canvas, "maskgit", budget=TokensPerStep(5), trajectory=True)
    steps = [len(record.revealed) for record in result.items[0].trajectory]
    assert len(steps) == 8
    assert steps == list(MaskGIT(steps=8).plan((1,) * 40))
    assert steps[0] < steps[-1]


def test_scores_are_log_probabilities_of_drawn_tokens_with_fading_gumbel_noise() -> None:
    length, steps = 4000, 4
    denoiser = FakeDenoiser(table_of([0.6] * length))
    canvas = torch.full((length,), MASK)
    item = generate(
        denoiser, canvas, f"maskgit:choice_temperature=2,steps={steps}", trajectory=True
    ).items[0]
    p = torch.tensor([0.6, 0.1], dtype=torch.float64)
    for k, record in enumerate(item.trajectory[:-1]):  # the last step leaves no choice
        log_p = record.parts["log_probability"]
        drawn_top = (log_p - p[0].log()).abs() < 1e-9
        assert bool((drawn_top | ((log_p - p[1].log()).abs() < 1e-9)).all())
        expected = 0.6 * len(log_p)
        assert abs(int(drawn_top.sum()) - expected) < 4 * math.sqrt(expected * 0.4)
        noise = record.scores - log_p
        scale = 2 * (1 - (k + 1) / steps)
        mean, spread = 0.5772 * scale, math.pi / math.sqrt(6) * scale
        assert float(noise.mean()) == pytest.approx(mean, abs=4 * spread / len(noise) ** 0.5 + 1e-9)
        assert float(noise.std()) == pytest.approx(spread, rel=0.15, abs=1e-9)


def test_without_choice_temperature_the_surest_drawn_tokens_come_first() -> None:
    denoiser = FakeDenoiser(table_of([0.6] * 30))
    canvas = torch.full((30,), MASK)
    item = generate(
        denoiser, canvas, "maskgit:choice_temperature=0,steps=5", trajectory=True
    ).items[0]
    first = item.trajectory[0]
    revealed = torch.isin(first.positions, first.revealed)
    assert float(first.scores[revealed].min()) >= float(first.scores[~revealed].max())


def test_tokens_are_drawn_at_temperature_1_unless_the_caller_says_otherwise() -> None:
    denoiser = FakeDenoiser(table_of([0.3] * 50))
    canvas = torch.full((50,), MASK)
    greedy = generate(denoiser, canvas, "maskgit", temperature=0.0).sequences[0]
    assert greedy.tolist() == [1 + k % 5 for k in range(50)]
    assert generate(denoiser, canvas, "maskgit").sequences[0].tolist() != greedy.tolist()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("maskgit:choice_temperature=-1", "choice_temperature must be finite and not negative"),
        ("maskgit:steps=0", "steps must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_from(spec)
