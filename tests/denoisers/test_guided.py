"""Gradients through both branches of classifier-free guidance."""

from __future__ import annotations

import plain_models
import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, table_of
from plain_models import entropies, plain_logits, plain_model, written
from tiny_models import MASK_ID, random_words, tiny_denoiser
from torch import Tensor

from boe import BoE, Canvas, generate
from boe.decoding.forwards import Forwards
from boe.denoisers import GradientRequest, Prediction, UnsupportedModel
from boe.denoisers.base import GuidedState
from boe_kernels import pad_rows

WEIGHT = 0.8
# Two canvases of 14 and 9 positions; the second is padded.
MASKS = ([1, 3, 4, 7, 9, 12], [0, 2, 5])
CANVAS = Canvas.of([random_words(14, MASKS[0], seed=1), random_words(9, MASKS[1], seed=2)])
FREE = Canvas(torch.where(CANVAS.valid, MASK_ID, CANVAS.ids), CANVAS.lengths)
POSITIONS = torch.tensor([[1, 3, 4, 7, 9, 12], [0, 2, 5, -1, -1, -1]])
CANDIDATES = torch.tensor([[3, 9], [2, -1]])
PROBES = torch.tensor([[1, 4, 7, 12], [0, 5, -1, -1]])
GIVEN = CANVAS.ids != MASK_ID
EVERY_ROW = pad_rows(CANVAS.valid)


def guided(name: str) -> tuple[Prediction, torch.nn.Module]:
    denoiser = tiny_denoiser(name)
    forwards = Forwards(denoiser, WEIGHT, combined=True)
    return forwards.predict(CANVAS, GIVEN, POSITIONS, "keys_values"), denoiser


def direct(
    name: str, alpha: float, probes: Tensor = PROBES, local: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(∂F/∂e_i, Δe, F) by one autograd call through two untouched models' forwards.

    Args:
        local: no gradient through any key or value.
    """
    model = plain_model(name)
    if local:
        model.set_attn_implementation("edited_sdpa")
    table = model.get_input_embeddings().weight.detach()

    def logits(conditional: Tensor, free: Tensor) -> Tensor:
        z, z_u = (
            plain_logits(model, embeds, canvas)
            for embeds, canvas in ((conditional, CANVAS), (free, FREE))
        )
        mixed = z + WEIGHT * (z - z_u)
        return mixed.index_fill(-1, torch.tensor([MASK_ID]), -torch.inf)

    plain, blind = table[CANVAS.ids], table[FREE.ids]
    with torch.no_grad():
        p = logits(plain, blind).softmax(dim=-1)
    at = CANDIDATES.clamp_min(0).unsqueeze(-1).expand(-1, -1, p.shape[-1])
    delta = p.gather(1, at) @ table - table[MASK_ID]
    delta = delta * (CANDIDATES >= 0).unsqueeze(-1)
    if local:
        plain_models._edit.append(lambda key, value: (key.detach(), value.detach()))
    # One leaf per candidate, which stands in both branches.
    leaf = (alpha * delta).requires_grad_()
    entropy = entropies(logits(written(plain, CANDIDATES, leaf), written(blind, CANDIDATES, leaf)))
    total = torch.where(probes >= 0, entropy.gather(1, probes.clamp_min(0)), 0.0).sum(dim=1)
    (gradient,) = torch.autograd.grad(total.sum(), leaf)
    plain_models._edit.clear()
    return gradient, delta, total.detach()


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-10) -> None:
    norm = float(theirs.norm())
    assert norm > 1e-3
    assert float((ours - theirs).norm()) <= tolerance * norm


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["bert", "roberta_pre_layer_norm"])
def test_with_every_row_active_the_combined_gradient_is_autograds_in_float64(
    name: str, alpha: float
) -> None:
    prediction, denoiser = guided(name)
    request = GradientRequest(CANDIDATES, PROBES, EVERY_ROW, alpha=alpha)
    result = denoiser.entropy_gradient(prediction, request)
    gradient, delta, total = direct(name, alpha)
    assert_close(result.gradient, gradient)
    assert_close(result.delta, delta)
    assert_close(result.surrogate, total)


def test_a_full_context_with_few_active_rows_has_the_value_of_two_whole_forwards() -> None:
    prediction, denoiser = guided("bert")
    request = GradientRequest(CANDIDATES, PROBES, POSITIONS, alpha=0.5, context="full")
    result = denoiser.entropy_gradient(prediction, request)
    assert_close(result.surrogate, direct("bert", 0.5)[2])
    assert result.forwards == 2


def test_the_branches_add_up_whatever_the_active_rows() -> None:
    """Each branch's share is what is left when the other one is held constant."""
    prediction, denoiser = guided("bert")
    request = GradientRequest(CANDIDATES, PROBES, POSITIONS)
    whole = denoiser.entropy_gradient(prediction, request).gradient
    state = prediction.state
    nowhere = torch.full_like(PROBES, -1)
    silent = denoiser.entropy_gradient(
        prediction, GradientRequest(CANDIDATES, nowhere, POSITIONS)
    ).gradient
    assert torch.equal(silent, torch.zeros_like(silent))
    conditional = denoiser.entropy_gradient(state.conditional, request).gradient
    assert float((whole - conditional).norm()) > 0.05 * float(whole.norm())


def test_a_branch_is_charged_like_a_decode_of_its_own() -> None:
    prediction, denoiser = guided("bert")
    request = GradientRequest(CANDIDATES, PROBES, POSITIONS)
    both = denoiser.entropy_gradient(prediction, request)
    one = denoiser.entropy_gradient(prediction.state.conditional, request)
    assert (both.backwards, one.backwards) == (2, 1)
    assert torch.equal(both.replayed_rows, 2 * one.replayed_rows)
    assert torch.equal(both.backward_rows, 2 * one.backward_rows)


def test_removing_a_candidates_own_entropy_removes_it_from_both_branches() -> None:
    prediction, denoiser = guided("bert")
    whole, less = (
        denoiser.entropy_gradient(
            prediction, GradientRequest(CANDIDATES, POSITIONS, EVERY_ROW, subtract_self=removed)
        )
        for removed in (False, True)
    )
    # Without gradients through keys and values, a row reaches no entropy but its own.
    own, _, _ = direct("bert", 0.0, CANDIDATES, local=True)
    assert_close(whole.gradient - less.gradient, own)
    assert less.backwards == 4


# --- in a decode ------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_boe_scores_by_the_combined_gradient_where_it_is_told_to(alpha: float) -> None:
    denoiser = tiny_denoiser("bert", 2)
    canvas = random_words(12, [1, 3, 4, 7, 9, 10])
    sampler = BoE(rho=0.5, tolerance=None, alpha=alpha, guidance_gradient="combined")
    item = generate(denoiser, canvas, sampler, guidance=WEIGHT, trajectory=True).items[0]
    record = item.trajectory[0]
    prediction = Forwards(denoiser, WEIGHT, combined=True).predict(
        Canvas.of(canvas), canvas[None] != MASK_ID, record.positions[None], "keys_values"
    )
    assert isinstance(prediction.state, GuidedState)
    request = GradientRequest(
        record.positions[record.parts["candidate"]][None],
        record.positions[record.parts["probe"]][None],
        record.positions[None],
        alpha=alpha,
    )
    result = denoiser.entropy_gradient(prediction, request)
    expected = -(result.gradient * result.delta).sum(-1)[0]
    torch.testing.assert_close(record.parts["tis"][record.parts["candidate"]], expected)
    plain = generate(
        denoiser,
        canvas,
        BoE(rho=0.5, tolerance=None, alpha=alpha),
        guidance=WEIGHT,
        trajectory=True,
    ).items[0]
    assert not torch.allclose(plain.trajectory[0].parts["tis"], record.parts["tis"])
    assert item.account.nfe_forward == plain.account.nfe_forward == 12


def test_without_guidance_there_is_nothing_to_combine() -> None:
    denoiser = tiny_denoiser("bert", 2)
    canvas = random_words(12, [1, 3, 4, 7, 9, 10])
    decoded = [
        generate(denoiser, canvas, BoE(rho=0.5, tolerance=None, guidance_gradient=how))
        for how in ("conditional", "combined")
    ]
    assert torch.equal(*(result.sequences[0] for result in decoded))
    assert decoded[0].total.flop_equiv == decoded[1].total.flop_equiv


def test_guided_sequences_are_steered_alike_alone_and_in_a_padded_batch() -> None:
    denoiser = tiny_denoiser("bert", 2)
    canvases = [random_words(12, [1, 3, 4, 7, 9]), random_words(8, [0, 2, 3, 5], seed=2)]
    sampler = BoE(rho=0.5, tolerance=None, guidance_gradient="combined")
    together = generate(denoiser, canvases, sampler, guidance=WEIGHT, trajectory=True)
    for number, canvas in enumerate(canvases):
        alone = generate(denoiser, canvas, sampler, guidance=WEIGHT, trajectory=True)
        for ours, theirs in zip(
            together.items[number].trajectory, alone.items[0].trajectory, strict=True
        ):
            assert torch.equal(ours.revealed, theirs.revealed)
            torch.testing.assert_close(ours.scores, theirs.scores)


# --- refused --------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["late", "dense"])
def test_engines_that_go_back_through_one_forwards_graph_are_refused(engine: str) -> None:
    with pytest.raises(ValueError, match=f"combined' needs engine='replay', got engine='{engine}'"):
        BoE(guidance_gradient="combined", engine=engine, alpha=0.0)
    prediction, denoiser = guided("bert")
    request = GradientRequest(CANDIDATES, PROBES, POSITIONS, engine=engine)
    with pytest.raises(ValueError, match=r"both branches of guidance 0\.8 needs engine='replay'"):
        denoiser.entropy_gradient(prediction, request)


def test_bridge_rows_ranked_by_one_branch_are_refused() -> None:
    with pytest.raises(ValueError, match="ranks the rows of one branch"):
        BoE(guidance_gradient="combined", active="bridges")
    BoE(guidance_gradient="combined", active="bridges", bridge_rule="random")


def test_a_denoiser_that_knows_one_branch_only_is_refused() -> None:
    denoiser = FakeDenoiser(table_of([0.5] * 4))
    sampler = BoE(guidance_gradient="combined")
    with pytest.raises(UnsupportedModel, match="FakeDenoiser cannot differentiate both branches"):
        generate(denoiser, torch.full((4,), MASK), sampler, guidance=1.0)
    assert generate(denoiser, torch.full((4,), MASK), sampler).sequences


def test_an_unknown_way_to_differentiate_guidance_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance_gradient must be one of conditional, combined"):
        BoE(guidance_gradient="both")
