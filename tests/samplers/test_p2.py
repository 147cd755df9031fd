"""P2: which positions it keeps, fills in, and masks again."""

from __future__ import annotations

import math

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, JointDenoiser, table_of
from torch import Tensor

from boe import TokensPerStep, generate, sampler_from, spec_of
from boe.decoding.draws import seeded
from boe.samplers import P2, Strategy
from boe.samplers.tokens import slot_seeds
from boe_kernels.token_sampling.noise import gumbel_noise


def blank(length: int) -> Tensor:
    return torch.full((length,), MASK)


class Shifting(FakeDenoiser):
    """Its certainty of a position depends on how many tokens are written."""

    def __init__(self, tables: list[list[float]]) -> None:
        super().__init__(table_of(tables[0]))
        self.tables = [table_of(table) for table in tables]

    def predict(self, canvas, positions, keep="nothing"):
        prediction = super().predict(canvas, positions, keep)
        written = int((canvas.ids != MASK).sum())
        logits = self.tables[min(written, len(self.tables) - 1)][positions.clamp_min(0)].clone()
        logits[..., MASK] = -torch.inf
        return type(prediction)(canvas, logits, positions, keep)


def steps_of(item) -> list[tuple[list[int], list[int]]]:
    return [(r.revealed.tolist(), r.remasked.tolist()) for r in item.trajectory]


def test_the_best_positions_stay_and_the_rest_is_masked_again() -> None:
    # At first 0 and 1 are sure; once two tokens are written, 2 and 3 are surer than 1.
    denoiser = Shifting([[0.9, 0.8, 0.3, 0.4]] * 2 + [[0.9, 0.5, 0.7, 0.6]] * 3)
    item = generate(denoiser, blank(4), "p2:steps=4", temperature=0.0, trajectory=True).items[0]
    # After step i, i positions are kept: 0; 0 1; 0 2 3 (1 is masked again); all.
    assert steps_of(item) == [([0], []), ([1], []), ([2, 3], [1]), ([1], [])]
    assert item.ids.tolist() == [1, 2, 3, 4]
    assert item.account.nfe_forward == 4


def scored(eta: float) -> list[tuple[list[int], list[int]]]:
    denoiser = Shifting([[0.9, 0.8, 0.3, 0.4]] * 2 + [[0.9, 0.5, 0.7, 0.6]] * 3)
    item = generate(
        denoiser, blank(4), P2(eta=eta, steps=4), temperature=0.0, trajectory=True
    ).items[0]
    return steps_of(item)


def test_eta_0_never_masks_a_token_again_and_more_masks_more() -> None:
    assert all(not remasked for _, remasked in scored(0.0))
    # 10·ln 0.9 = −1.05 is below ln 0.4 = −0.92: now even position 0 goes.
    assert scored(10.0)[1] == ([1, 3], [0])


def test_a_token_that_is_masked_again_may_be_written_anew() -> None:
    generator = torch.Generator().manual_seed(1)
    denoiser = JointDenoiser(torch.rand((3,) * 5, generator=generator) ** 4)
    item = generate(denoiser, blank(5), "p2:eta=4,steps=12", seed=2, trajectory=True).items[0]
    assert sum(len(r.remasked) for r in item.trajectory) > 0
    canvas = blank(5)
    for number, record in enumerate(item.trajectory, 1):
        held = canvas.clone()
        canvas[record.remasked] = MASK
        canvas[record.revealed] = record.tokens
        kept = (canvas != MASK) & (held != MASK)
        assert torch.equal(canvas[kept], held[kept]), "kept tokens stay as they are"
        assert int((canvas == MASK).sum()) == 5 * (12 - number) // 12
    assert torch.equal(canvas, item.ids)


def test_scores_are_log_probabilities_under_the_noised_logits() -> None:
    # Rebuilt from the loop's own noise: the same generator, the same seeds.
    table = table_of([0.5, 0.4, 0.3])
    item = generate(
        FakeDenoiser(table), blank(3), "p2:steps=3", temperature=0.7, seed=5, trajectory=True
    ).items[0]
    generators = [seeded("5/0/0/tokens", torch.device("cpu"))]
    seeds = slot_seeds(torch.arange(3).unsqueeze(0), generators)
    table = table.clone()
    table[:, MASK] = -torch.inf
    noisy = table / 0.7 + gumbel_noise(seeds[0], 6)
    first = item.trajectory[0]
    torch.testing.assert_close(first.scores, noisy.log_softmax(dim=1).amax(dim=1))
    best = int(first.scores.argmax())
    assert first.revealed.tolist() == [best]
    assert first.tokens.tolist() == [int(noisy[best].argmax())]


def test_the_margin_score_is_the_lead_of_the_best_log_probability() -> None:
    denoiser = FakeDenoiser(table_of([0.5, 0.4, 0.3]))
    item = generate(
        denoiser, blank(3), "p2:score=margin,steps=3", temperature=0.0, trajectory=True
    ).items[0]
    expected = [math.log(p) - math.log((1 - p) / 4) for p in (0.5, 0.4, 0.3)]
    assert item.trajectory[0].scores.tolist() == pytest.approx(expected)


def test_random_scores_without_remasking_are_ancestral_sampling() -> None:
    denoiser = FakeDenoiser(torch.zeros(4, 3, dtype=torch.float64))
    canvases = torch.full((600, 4), MASK)
    result = generate(denoiser, canvases, "p2:score=random,eta=0,steps=4", trajectory=True)
    assert all(not len(r.remasked) for item in result.items for r in item.trajectory)
    first = torch.tensor([int(item.trajectory[0].revealed) for item in result.items])
    counts = first.bincount(minlength=4).double()
    assert float(((counts - 150) ** 2 / 150).sum()) < 16.3  # 3 degrees of freedom, 0.1 %


def test_a_planner_scores_the_observed_tokens_and_its_forwards_count() -> None:
    # The planner distrusts position 0, which the denoiser is surest of.
    planner = FakeDenoiser(table_of([0.21, 0.9, 0.9, 0.9]))
    denoiser = FakeDenoiser(table_of([0.9, 0.8, 0.6, 0.5]))
    policy = P2(steps=4, planner=planner)
    item = generate(denoiser, blank(4), policy, temperature=0.0, trajectory=True).items[0]
    # ln 0.21 is the planner's word on 0; 1 is then unobserved and scored 0.8.
    assert steps_of(item)[:2] == [([0], []), ([1, 2], [0])]
    # No token was observed in the first step.
    assert len(planner.canvases) == 4
    assert item.account.nfe_forward == 4 + 3
    assert [int((c.ids == MASK).sum()) for c in planner.canvases] == [0] * 4


def test_free_positions_of_other_blocks_are_left_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    denoiser = JointDenoiser(torch.rand((3,) * 6, generator=generator) ** 4)
    canvas = blank(6)
    item = generate(
        denoiser,
        canvas,
        P2(eta=5.0, steps=6),
        block_length=3,
        budget=TokensPerStep(1),
        seed=1,
        trajectory=True,
    ).items[0]
    assert sum(len(r.remasked) for r in item.trajectory) > 0
    assert len(item.trajectory) == 12
    for number, record in enumerate(item.trajectory):
        for place in (*record.revealed.tolist(), *record.remasked.tolist()):
            assert place // 3 == number // 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: P2(eta=-1.0), "eta must be finite and not negative, got -1.0"),
        (lambda: P2(score="other"), "score must be one of probability, margin, random"),
        (lambda: P2(steps=0), "steps must be at least 1, got 0"),
        (
            lambda: P2(score="random", planner=FakeDenoiser(table_of([0.5]))),
            "score='random' does not read the planner's prediction",
        ),
        (lambda: sampler_from("p2+remdm-cap"), "does not go with p2, which decides itself"),
        (lambda: sampler_from("p2:planner=x"), "planner has no text form; pass it in Python"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_planner_has_no_specification_string() -> None:
    policy = P2(planner=FakeDenoiser(table_of([0.5])))
    with pytest.raises(ValueError, match="p2: planner has no text form"):
        spec_of(Strategy(policy))
