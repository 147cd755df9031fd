"""Classifier-free guidance, suppressed and delayed ids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, JointDenoiser, table_of
from tiny_models import random_words, tiny_denoiser
from torch import Tensor

from boe import BoE, Canvas, TokensPerStep, generate
from boe.denoisers import GradientRequest


def blank(length: int) -> Tensor:
    return torch.full((length,), MASK)


def joint() -> JointDenoiser:
    generator = torch.Generator().manual_seed(0)
    return JointDenoiser(torch.rand((3,) * 4, generator=generator) ** 3)


# --- guidance -------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_guided_logits_lead_away_from_those_without_the_prompt(weight: float) -> None:
    denoiser = joint()
    canvas = torch.tensor([2, MASK, MASK, 1])
    item = generate(denoiser, canvas, "entropy", guidance=weight, trajectory=True).items[0]
    now = canvas.clone()
    for record in item.trajectory:
        blind = now.clone()
        blind[[0, 3]] = MASK
        with_prompt, without = (
            denoiser.conditionals(ids.unsqueeze(0))[0, :, 1:].log() for ids in (now, blind)
        )
        guided = (without + (weight + 1) * (with_prompt - without)).log_softmax(dim=1)
        expected = -(guided.exp() * guided).sum(dim=1)
        torch.testing.assert_close(record.entropy, expected[record.positions])
        now[record.revealed] = record.tokens
    assert item.account.nfe_forward == 4


def test_what_was_written_stays_in_the_canvas_without_the_prompt() -> None:
    denoiser = joint()
    generate(denoiser, torch.tensor([2, MASK, MASK, 1]), "confidence", guidance=1.0)
    seen = [canvas.ids[0].tolist() for canvas in denoiser.canvases]
    assert seen[0] == [2, MASK, MASK, 1]
    assert seen[1] == [MASK] * 4
    assert seen[3] == [MASK, *seen[2][1:3], MASK]
    assert seen[2].count(MASK) == 1


def test_guidance_works_in_padded_and_in_unpadded_batches_alike() -> None:
    denoiser = tiny_denoiser("bert", 2)
    canvases = [random_words(12, [1, 4, 5, 9], seed=1), random_words(7, [2, 3], seed=2)]
    together = generate(denoiser, canvases, "confidence", guidance=1.5)
    for k, canvas in enumerate(canvases):
        alone = generate(denoiser, canvas, "confidence", guidance=1.5)
        assert torch.equal(alone.sequences[0], together.sequences[k])


def test_steering_differentiates_the_conditional_branch_with_guided_soft_writes() -> None:
    denoiser = tiny_denoiser("bert", 2)
    canvas = random_words(12, [1, 3, 4, 7, 9, 10])
    sampler = BoE(rho=0.5, tolerance=None, alpha=0.5)
    item = generate(denoiser, canvas, sampler, guidance=0.8, trajectory=True).items[0]
    record = item.trajectory[0]

    positions = record.positions[None]
    conditional = denoiser.predict(Canvas.of(canvas), positions, "keys_values")
    free = torch.full_like(canvas, 3)  # everything was given, so everything is masked
    without = denoiser.predict(Canvas.of(free), positions).logits
    logits = conditional.logits + 0.8 * (conditional.logits - without).nan_to_num(0.0)
    request = GradientRequest(
        record.positions[record.parts["candidate"]][None],
        record.positions[record.parts["probe"]][None],
        record.positions[None],
        alpha=0.5,
    )
    result = denoiser.entropy_gradient(replace(conditional, logits=logits), request)
    expected = -(result.gradient * result.delta).sum(-1)[0]
    torch.testing.assert_close(record.parts["tis"][record.parts["candidate"]], expected)
    assert float(expected.abs().max()) > 1e-4


@pytest.mark.parametrize("guidance", [-1.0, float("inf"), float("nan")])
def test_guidance_must_be_finite_and_not_negative(guidance: float) -> None:
    with pytest.raises(ValueError, match="guidance must be finite and not negative"):
        generate(joint(), blank(4), "confidence", guidance=guidance)


# --- suppressed ids -------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_suppressed_ids_are_never_written(temperature: float, guidance: float) -> None:
    denoiser = FakeDenoiser(table_of([0.8] * 20))
    result = generate(
        denoiser,
        blank(20),
        "confidence",
        suppress=[2, 4],
        temperature=temperature,
        guidance=guidance,
    )
    ids = result.sequences[0].tolist()
    assert set(ids) <= {1, 3, 5}
    assert [ids[0], ids[2]] == [1, 3] or temperature > 0


def test_entropies_and_confidences_are_those_without_the_suppressed_ids() -> None:
    denoiser = FakeDenoiser(table_of([0.6, 0.6]))
    item = generate(denoiser, blank(2), "confidence", suppress=[1], trajectory=True).items[0]
    # Position 0's best id is gone: four equal ones are left. Position 1 loses 0.1 of 1.
    assert item.trajectory[0].scores.tolist() == pytest.approx([0.25, 0.6 / 0.9])


def test_suppressing_everything_is_an_error() -> None:
    denoiser = FakeDenoiser(table_of([0.6, 0.6]))
    with pytest.raises(ValueError, match="suppress leaves none of the 6 ids to be written"):
        generate(denoiser, blank(2), "confidence", suppress=range(6))


@pytest.mark.parametrize("name", ["suppress", "delay"])
def test_ids_outside_the_vocabulary_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must hold ids in \[0, 6\), got 6"):
        generate(FakeDenoiser(table_of([0.6])), blank(1), "confidence", **{name: [6]})


# --- delayed ids ----------------------------------------------------------------------

# Positions 0, 5 write id 1; they are the surest.
CONFIDENCES = [0.95, 0.5, 0.6, 0.7, 0.8, 0.9, 0.55]


def order(spec: str, **options: object) -> list[list[int]]:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), torch.arange(7).double())
    item = generate(denoiser, blank(7), spec, delay=[1], trajectory=True, **options).items[0]
    assert item.ids.tolist() == [1, 2, 3, 4, 5, 1, 2], "delayed ids are written all the same"
    return [record.revealed.tolist() for record in item.trajectory]


@pytest.mark.parametrize("spec", ["confidence", "margin", "entropy"])
def test_positions_of_delayed_ids_are_revealed_last(spec: str) -> None:
    assert order(spec) == [[4], [3], [2], [6], [1], [0], [5]]


def test_with_several_a_step_delayed_positions_only_fill_up_by_rank() -> None:
    assert order("confidence", budget=TokensPerStep(3)) == [[2, 3, 4], [0, 1, 6], [5]]
    assert order("confidence", budget=TokensPerStep(6)) == [[0, 1, 2, 3, 4, 6], [5]]


def test_adaptive_counts_pass_delayed_positions_over() -> None:
    assert order("threshold:value=0.65") == [[3, 4], [2], [6], [1], [0], [5]]
    assert order("factor") == [[3, 4], [2], [6], [1], [0], [5]]
    assert order("eb:gamma=100") == [[1, 2, 3, 4, 6], [0, 5]]
    # Of the budget of two and what is due early, none is used up by what waits.
    three = order("overlap:gamma=100,floor=0.99,early=0.5", budget=TokensPerStep(2))
    assert three == [[2, 3, 4], [1, 6], [0, 5]]


def test_boe_does_not_spend_its_candidates_on_delayed_positions() -> None:
    # Influence grows with the position: without the delay 5 would come before 4.
    assert order("boe:tolerance=none,rho=0.5")[:2] == [[4], [3]]
    assert order("boe:tolerance=none,rho=0.3")[-2:] == [[0], [5]]


def test_the_token_that_was_drawn_decides_whether_a_position_is_delayed() -> None:
    denoiser = FakeDenoiser(table_of([0.5] * 30))
    for seed in range(3):
        item = generate(
            denoiser,
            blank(30),
            "confidence",
            delay=[1, 2],
            temperature=1.0,
            seed=seed,
            budget=TokensPerStep(10),
            trajectory=True,
        ).items[0]
        first = item.trajectory[0].tokens.tolist()
        assert not {1, 2} & set(first)


def test_a_policy_without_a_ranking_cannot_delay() -> None:
    with pytest.raises(ValueError, match="delay needs a policy that ranks positions, got mdlm"):
        generate(FakeDenoiser(table_of([0.5])), blank(1), "mdlm", delay=[1])
