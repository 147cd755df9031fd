"""The transformers denoiser: predictions, and what it leaves behind in the model."""

from __future__ import annotations

import pytest
import torch
from plain_models import plain_logits, plain_model
from tiny_models import ARCHITECTURES, MASK_ID, VOCABULARY, random_words, tiny_denoiser, tiny_model

from boe.canvas import Canvas
from boe.denoisers import GradientRequest
from boe.denoisers.attention_modes import ATTENTION_NAME, Plain
from boe.denoisers.base import DenoiserFacts, UnsupportedModel, slots_of, take_rows
from boe.denoisers.transformers_model import TransformersDenoiser

CANVAS = Canvas.of([random_words(21, [2, 5, 20], seed=1), random_words(13, [0, 4], seed=2)])
POSITIONS = torch.tensor([[2, 5, 20], [0, 4, -1]])
KEEPS = ("nothing", "keys_values", "attention", "graph", "dense_graph")


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_predictions_are_the_untouched_models_logits_at_the_asked_positions(
    name: str, keep: str
) -> None:
    plain = plain_model(name)
    expected = plain_logits(plain, plain.get_input_embeddings()(CANVAS.ids), CANVAS)
    prediction = tiny_denoiser(name).predict(CANVAS, POSITIONS, keep)
    tolerance = 1e-4 if name == "eurobert" else 1e-9
    for row in range(2):
        members = POSITIONS[row][POSITIONS[row] >= 0]
        ours = prediction.logits[row, : len(members)]
        torch.testing.assert_close(ours, expected[row, members], rtol=tolerance, atol=tolerance)
    assert bool((prediction.logits[..., MASK_ID] == -torch.inf).all())
    assert not prediction.logits.requires_grad


def test_suppressed_ids_cannot_be_written() -> None:
    denoiser = tiny_denoiser("bert", suppressed_ids=(0, 39))
    assert denoiser.facts.suppressed_ids == (0, MASK_ID, 39)
    logits = denoiser.predict(CANVAS, POSITIONS).logits
    impossible = (logits[0] == -torch.inf).all(dim=0).nonzero().flatten()
    assert impossible.tolist() == [0, MASK_ID, 39]


def test_suppressed_ids_carry_no_entropy_gradient() -> None:
    # With one id left besides the mask every entropy is zero, and so is every gradient.
    rest = tuple(v for v in range(VOCABULARY) if v != 7)
    denoiser = tiny_denoiser("bert", suppressed_ids=rest)
    prediction = denoiser.predict(CANVAS, POSITIONS, "keys_values")
    result = denoiser.entropy_gradient(
        prediction,
        GradientRequest(torch.tensor([[2], [0]]), torch.tensor([[5, 20], [4, -1]]), POSITIONS),
    )
    assert float(result.surrogate.abs().max()) < 1e-12
    assert float(result.gradient.abs().max()) < 1e-12


def test_the_model_stays_usable_and_keeps_its_weights() -> None:
    before = {key: value.clone() for key, value in tiny_model("bert").state_dict().items()}
    denoiser = tiny_denoiser("bert")
    plain = plain_model("bert")
    expected = plain(input_ids=CANVAS.ids, attention_mask=CANVAS.valid.long()).logits
    ours = denoiser.model(input_ids=CANVAS.ids, attention_mask=CANVAS.valid.long()).logits
    torch.testing.assert_close(ours[CANVAS.valid], expected[CANVAS.valid])
    after = denoiser.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(p.requires_grad for p in denoiser.model.parameters())
    assert not denoiser.model.training


def test_a_model_with_a_3_d_mask_of_its_own_is_refused_instead_of_ignoring_the_mask() -> None:
    denoiser = tiny_denoiser("bert")
    mask = torch.ones(2, 1, 21, 21, dtype=torch.bool)
    with pytest.raises(ValueError, match=rf"{ATTENTION_NAME} takes a padding mask \(B, L\)"):
        denoiser.model(input_ids=CANVAS.ids, attention_mask=mask)


def test_a_mask_of_keys_may_be_bool_or_added_to_the_scores() -> None:
    model, plain = tiny_denoiser("bert").model, plain_model("bert")
    expected = plain(input_ids=CANVAS.ids, attention_mask=CANVAS.valid.long()).logits
    keys = CANVAS.valid[:, None, None]
    hidden = torch.zeros(keys.shape, dtype=torch.float64).masked_fill(~keys, -torch.inf)
    for mask in (keys, hidden, hidden.clamp_min(torch.finfo(torch.float64).min)):
        ours = model(input_ids=CANVAS.ids, attention_mask=mask).logits
        torch.testing.assert_close(ours[CANVAS.valid], expected[CANVAS.valid])
    bias = hidden + torch.linspace(-2, 2, 21, dtype=torch.float64)
    ours = model(input_ids=CANVAS.ids, attention_mask=bias).logits[CANVAS.valid]
    dense = plain(input_ids=CANVAS.ids, attention_mask=bias.expand(-1, -1, 21, -1)).logits
    torch.testing.assert_close(ours, dense[CANVAS.valid])
    assert not torch.allclose(ours, expected[CANVAS.valid])


def test_an_additive_mask_is_refused_where_a_denoiser_keeps_what_its_layers_do() -> None:
    denoiser = tiny_denoiser("bert")
    with pytest.raises(UnsupportedModel, match="takes no additive mask in a denoiser: Bert"):
        denoiser.model(
            input_ids=CANVAS.ids,
            attention_mask=torch.zeros(2, 1, 1, 21, dtype=torch.float64),
            boe_mode=Plain(),
        )


def test_training_mode_with_dropout_is_refused() -> None:
    denoiser = tiny_denoiser("bert")
    denoiser.model.train()
    with pytest.raises(ValueError, match=r"no dropout.*model\.eval\(\)"):
        denoiser.model(input_ids=CANVAS.ids)


def test_the_active_rows_can_be_passed_to_the_model_directly() -> None:
    denoiser = tiny_denoiser("bert")
    embeds = denoiser.embedding(CANVAS.ids[:1]).requires_grad_()
    logits = denoiser.model(inputs_embeds=embeds, boe_active_idx=torch.tensor([2])).logits
    (grad,) = torch.autograd.grad(logits[0, 5].sum(), embeds)
    assert float(grad[0, 5].norm()) > 1e-3, "a row's own residual stream is never cut"
    assert float(grad[0, 2].norm()) == 0.0, "row 5 is inactive: nothing passes its attention"


def hooks_of(denoiser: TransformersDenoiser) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in denoiser.model.modules()
    )


@pytest.mark.parametrize("keep", KEEPS)
def test_no_hook_is_left_behind_by_a_call(keep: str) -> None:
    before = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in tiny_model("bert").modules()
    )
    denoiser = tiny_denoiser("bert")
    assert hooks_of(denoiser) == before
    prediction = denoiser.predict(CANVAS, POSITIONS, keep)
    if keep != "nothing":
        engine = {"graph": "late", "dense_graph": "dense"}.get(keep, "replay")
        request = GradientRequest(POSITIONS[:, :1], POSITIONS[:, 1:], POSITIONS, engine=engine)
        denoiser.entropy_gradient(prediction, request)
    assert hooks_of(denoiser) == before


def test_no_hook_is_left_behind_by_an_exception() -> None:
    denoiser = tiny_denoiser("bert")
    before = hooks_of(denoiser)
    with pytest.raises(RuntimeError):
        denoiser.run(torch.zeros(1, 5, 31, dtype=torch.float64), Plain(), torch.tensor([[0]]))
    assert hooks_of(denoiser) == before
    denoiser.predict(CANVAS, POSITIONS)


def test_two_denoisers_on_one_model_do_not_disturb_each_other() -> None:
    model = tiny_model("bert")
    one = TransformersDenoiser(model, MASK_ID)
    two = TransformersDenoiser(model, MASK_ID, logits_shift=-1)
    first = one.predict(CANVAS, POSITIONS).logits
    second = two.predict(CANVAS, POSITIONS).logits
    assert torch.equal(one.predict(CANVAS, POSITIONS).logits, first)
    assert not torch.equal(first, second)


def test_shifted_logits_are_those_of_the_row_before_and_row_0_predicts_position_0() -> None:
    unshifted = tiny_denoiser("bert").predict(CANVAS, torch.tensor([[1, 4, 19], [0, 3, -1]]))
    shifted = tiny_denoiser("bert", logits_shift=-1).predict(CANVAS, POSITIONS)
    valid = POSITIONS >= 0
    torch.testing.assert_close(shifted.logits[valid], unshifted.logits[valid])


def test_row_of_shifts_clamps_and_keeps_padding() -> None:
    facts = DenoiserFacts(mask_id=0, vocab_size=5, suppressed_ids=(0,), logits_shift=-1)
    assert facts.row_of(torch.tensor([[0, 1, 7, -1]])).tolist() == [[0, 0, 6, -1]]
    same = DenoiserFacts(mask_id=0, vocab_size=5, suppressed_ids=(0,))
    assert same.row_of(torch.tensor([[0, 1, 7, -1]])).tolist() == [[0, 1, 7, -1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_id": 40}, r"mask_id must be in \[0, 40\), got 40"),
        ({"mask_id": -1}, r"mask_id must be in \[0, 40\), got -1"),
        ({"mask_id": 3, "suppressed_ids": (1, 99)}, r"suppressed_ids must be in \[0, 40\), got 99"),
        ({"mask_id": 3, "logits_shift": 1}, "logits_shift must be 0 or -1, got 1"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformersDenoiser(tiny_model("bert", 1), **options)


def test_a_canvas_longer_than_the_model_takes_is_refused() -> None:
    denoiser = tiny_denoiser("roberta")
    longest = Canvas.of(random_words(38, [3]))
    assert denoiser.predict(longest, torch.tensor([[3]])).logits.isfinite().any()
    with pytest.raises(ValueError, match="canvas has 39 positions; the model takes 38"):
        denoiser.predict(Canvas.of(random_words(39, [3])), torch.tensor([[3]]))


def test_a_canvas_on_another_device_is_refused() -> None:
    canvas = Canvas(CANVAS.ids.to("meta"), CANVAS.lengths)
    with pytest.raises(ValueError, match="canvas must be on the model's device cpu, got meta"):
        tiny_denoiser("bert", 1).predict(canvas, POSITIONS)


def test_slots_find_members_among_rows_and_padding_nowhere() -> None:
    rows = torch.tensor([[4, 0, 2], [1, -1, -1]])
    members = torch.tensor([[2, 4, 3, -1], [1, 0, -1, 1]])
    assert slots_of(members, rows, 6).tolist() == [[2, 0, -1, -1], [0, -1, -1, 0]]


def test_taken_rows_keep_the_batch_apart() -> None:
    x = torch.arange(2 * 3 * 2).view(2, 3, 2)
    taken = take_rows(x, torch.tensor([[2, 0], [1, -1]]))
    assert taken.tolist() == [[[4, 5], [0, 1]], [[8, 9], [6, 7]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_half_and_single_precision_models_come_in_float32(dtype: torch.dtype) -> None:
    denoiser = TransformersDenoiser(tiny_model("bert").to(dtype), MASK_ID)
    exact = tiny_denoiser("bert")
    request = GradientRequest(POSITIONS[:, :1], POSITIONS[:, 1:], POSITIONS)
    ours = denoiser.entropy_gradient(denoiser.predict(CANVAS, POSITIONS, "keys_values"), request)
    assert ours.gradient.dtype == ours.delta.dtype == torch.float32
    expected = exact.entropy_gradient(exact.predict(CANVAS, POSITIONS, "keys_values"), request)
    error = float((ours.gradient - expected.gradient).norm() / expected.gradient.norm())
    assert error < (1e-4 if dtype == torch.float32 else 0.3)
