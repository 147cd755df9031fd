"""ReMDM's loop on LLaDA: its phases, and what it takes back."""

from __future__ import annotations

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, JointDenoiser, table_of

from boe import TokensPerStep, generate, sampler_from
from boe.samplers import LladaLoop


@pytest.mark.parametrize(
    ("options", "planned", "plan"),
    [
        ({"ratio": 0.75, "loops": 2}, (1,) * 8, (1,) * 6 + (-1, 1, -1, 1) + (1, 1)),
        ({"ratio": 0.75, "loops": 2, "tokens": 3}, (1,) * 8, (1,) * 6 + (-3, 3, -3, 3, 1, 1)),
        ({"ratio": 0.5, "loops": 1}, (3, 3, 2), (3, 1, -1, 1, 2, 2)),
        ({"ratio": 0.5, "loops": 1, "tokens": 9}, (2, 2), (2, -2, 2, 2)),
        ({"ratio": 1.0, "loops": 1}, (2, 2), (2, 2, -2, 2)),
        ({"ratio": 1.0, "loops": 0}, (2, 2), (2, 2)),
        ({"ratio": 0.01, "loops": 1}, (2, 2), (1, -1, 1, 1, 2)),
    ],
)
def test_the_plan_has_a_first_phase_loops_and_the_rest(options, planned, plan) -> None:
    assert LladaLoop(**options).plan(planned) == plan
    assert sum(plan) == sum(planned)


def test_the_functions_defaults_cost_what_the_authors_count() -> None:
    denoiser = FakeDenoiser(table_of([0.5] * 64))
    account = generate(denoiser, torch.full((64,), MASK), "remdm-llada").total
    assert account.nfe_forward == 56 + 2 * 32 + 8


def test_the_least_probable_written_tokens_are_taken_back() -> None:
    generator = torch.Generator().manual_seed(6)
    denoiser = JointDenoiser(torch.rand((3,) * 6, generator=generator) ** 4)
    canvas = torch.tensor([MASK, MASK, 3, MASK, MASK, MASK])
    item = generate(
        denoiser,
        canvas,
        "remdm-llada:ratio=0.8,loops=3,tokens=2",
        seed=1,
        trajectory=True,
    ).items[0]
    now = canvas.clone()
    taken = 0
    for record in item.trajectory:
        if len(record.remasked):
            taken += 1
            own = denoiser.conditionals(now.unsqueeze(0))[0].gather(1, now.unsqueeze(1))
            written = [j for j in range(6) if int(now[j]) != MASK and j != 2]
            worst = sorted(written, key=lambda j: float(own[j]))[:2]
            assert record.remasked.tolist() == sorted(worst)
            assert not len(record.revealed)
        now[record.remasked] = MASK
        now[record.revealed] = record.tokens
    assert taken == 3
    assert torch.equal(now, item.ids)
    assert int(item.ids[2]) == 3, "the prompt is never taken back"


@pytest.mark.parametrize(
    "which",
    [
        *("confidence", "boe:tolerance=none,rho=0.5", "random"),
        *("eb:gamma=0", "eb:gamma=0,along=entropy", "overlap:gamma=0"),
    ],
)
def test_any_ranking_goes_through_the_phases(which: str) -> None:
    denoiser = FakeDenoiser(table_of([0.9, 0.3, 0.8, 0.4, 0.7, 0.5]))
    item = generate(
        denoiser,
        torch.full((6,), MASK),
        f"{which}+remdm-llada:ratio=0.67,loops=2,tokens=2",
        budget=TokensPerStep(2),
        trajectory=True,
    ).items[0]
    changes = [len(r.revealed) - len(r.remasked) for r in item.trajectory]
    assert changes == [2, 2, -2, 2, -2, 2, 2]
    assert not any(len(r.remasked) and len(r.revealed) for r in item.trajectory)


def test_a_block_is_done_only_after_its_loops() -> None:
    denoiser = FakeDenoiser(table_of([0.5] * 6))
    item = generate(
        denoiser,
        torch.full((6,), MASK),
        "remdm-llada:ratio=1,loops=1",
        block_length=3,
        trajectory=True,
    ).items[0]
    changes = [len(r.revealed) - len(r.remasked) for r in item.trajectory]
    assert changes == [1, 1, 1, -1, 1] * 2
    assert all(max(r.remasked.tolist()) < 3 for r in item.trajectory[:5] if len(r.remasked))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("remdm-llada:ratio=0", r"ratio must be in \(0, 1\], got 0\.0"),
        ("remdm-llada:loops=-1", "loops must not be negative, got -1"),
        ("remdm-llada:tokens=0", "tokens must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_from(spec)
