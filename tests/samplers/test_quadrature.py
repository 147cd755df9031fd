"""Gradients averaged over a soft write, against integrals done by hand and true falls."""

from __future__ import annotations

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, table_of
from tiny_models import MASK_ID, random_words, tiny_denoiser

from boe import BoE, TokensPerStep, generate, sampler_from
from boe.canvas import Canvas
from boe.denoisers import EntropyGradient, GradientRequest, Prediction
from boe.samplers.quadrature import RULES, quadrature_gradient
from boe_kernels import entropy_stats

CONFIDENCES = [0.9, 0.3, 0.8, 0.4, 0.7, 0.5]


class Cubic(FakeDenoiser):
    """Whose influences along a soft write are 1 + 2α + 3α² + 4α³ times a table."""

    def entropy_gradient(self, prediction: Prediction, request: GradientRequest) -> EntropyGradient:
        at = request.alpha
        found = super().entropy_gradient(prediction, request)
        factor = 1 + 2 * at + 3 * at**2 + 4 * at**3
        return EntropyGradient(
            found.gradient * factor,
            *(found.delta, found.surrogate, found.forwards, found.backwards),
            *(found.replayed_rows, found.backward_rows),
        )


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_integrates_cubic_polynomials_exactly_and_no_higher_ones(rule: str) -> None:
    for power in range(5):
        found = sum(weight * alpha**power for alpha, weight in RULES[rule])
        assert (abs(found - 1 / (power + 1)) < 1e-12) == (power <= 3)


@pytest.mark.parametrize("rule", RULES)
def test_the_score_is_the_integral_of_the_influence_along_the_soft_write(rule: str) -> None:
    influence = torch.tensor([1.0, 0.0, 3.0, 0.0, -2.0, 0.5]).double()
    denoiser = Cubic(table_of(CONFIDENCES), influence)
    sampler = BoE(rho=0.5, tolerance=None, sure=None, quadrature=rule)
    item = generate(denoiser, torch.full((6,), MASK), sampler, trajectory=True).items[0]
    first = item.trajectory[0]
    # ∫ (1 + 2α + 3α² + 4α³) dα = 4; the candidates are the three most confident.
    tis = dict(zip(first.positions.tolist(), first.parts["tis"].tolist(), strict=True))
    assert [tis[k] for k in (0, 2, 4)] == pytest.approx([4.0, 12.0, -8.0])
    assert first.revealed.tolist() == [2]


@pytest.mark.parametrize(("quadrature", "points"), [("point", 1), ("gauss", 2), ("simpson", 3)])
def test_every_point_costs_a_replay_and_a_backward(quadrature: str, points: int) -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES))
    sampler = BoE(rho=0.5, tolerance=None, sure=None, quadrature=quadrature)
    steps = []
    generate(
        denoiser,
        torch.full((6,), MASK),
        sampler,
        budget=TokensPerStep(2),
        on_step=lambda _, item: steps.append((item.account.n_backward, item.account.flop_equiv)),
    )
    # Three candidates of six masks, all of whose rows are active; of four masks two: no choice.
    assert steps[0] == (points, 1 + points * 2 * 6 / 6)
    alphas = {"point": [0.5], "gauss": [0.2113, 0.7887], "simpson": [0, 0.5, 1]}
    found = [request.alpha for request in denoiser.requests[:points]]
    assert found == pytest.approx(alphas[quadrature], abs=1e-4)


def fall_and_estimates(seed: int) -> tuple[float, dict[str, float]]:
    """What one soft write truly does to the entropy of all others, and what is predicted."""
    denoiser = tiny_denoiser("bert")
    ids = random_words(12, [1, 4, 5, 9], seed).unsqueeze(0)
    canvas, masked = Canvas(ids, (12,)), torch.tensor([[1, 4, 5, 9]])
    prediction = denoiser.predict(canvas, masked, "keys_values")
    probes = torch.tensor([[1, 5, 9]])
    request = GradientRequest(
        candidates=torch.tensor([[4]]),
        probes=probes,
        active=torch.arange(12).unsqueeze(0),
        context="full",
    )
    found = {}
    for name, rule, alpha in (
        ("start", "point", 0.0),
        ("simpson", "simpson", 0.5),
        ("gauss", "gauss", 0.5),
    ):
        asked = GradientRequest(**{**vars(request), "alpha": alpha})
        gradient = quadrature_gradient(denoiser, prediction, asked, rule)
        found[name] = -float((gradient.gradient * gradient.delta).sum())
    model = denoiser.model
    embeds = model.get_input_embeddings()(ids).double()
    embeds[0, 4] += gradient.delta[0, 0]
    soft = model(inputs_embeds=embeds).logits[:, [1, 5, 9]].clone()
    soft[..., MASK_ID] = -torch.inf
    before = entropy_stats(prediction.logits[:, [0, 2, 3]]).entropy.sum()
    return float(before - entropy_stats(soft).entropy.sum()), found


def test_both_rules_come_nearer_to_the_fall_of_a_single_soft_write_than_its_start() -> None:
    errors: dict[str, float] = {}
    for seed in range(8):
        fall, found = fall_and_estimates(seed)
        for name, value in found.items():
            errors[name] = errors.get(name, 0.0) + abs(value - fall)
    assert errors["simpson"] < 0.5 * errors["start"]
    assert errors["gauss"] < 0.5 * errors["start"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("boe:quadrature=trapezoid", "quadrature must be one of point, simpson, gauss, got"),
        ("boe:quadrature=simpson,alpha=1", r"alpha=1\.0 is where quadrature='point' takes"),
        ("boe:quadrature=gauss,engine=late,context=full", "quadrature='gauss' needs engine='repl"),
    ],
)
def test_a_rule_that_contradicts_other_options_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_from(spec)
