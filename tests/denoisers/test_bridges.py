"""Bridge scores against attention probabilities that an eager model hands out itself."""

from __future__ import annotations

import pytest
import torch
from plain_models import plain_model, soft_writes, written
from tiny_models import random_words, tiny_denoiser, tiny_model
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers import GradientRequest
from boe.denoisers.bridges import attention_paid

CANVAS = Canvas.of([random_words(21, [2, 5, 8, 20], seed=1), random_words(13, [0, 4, 9], seed=2)])
POSITIONS = torch.tensor([[2, 5, 8, 20], [0, 4, 9, -1]])
CANDIDATES = torch.tensor([[2, 8], [4, -1]])
PROBES = torch.tensor([[5, 20], [0, 9]])
REQUEST = GradientRequest(CANDIDATES, PROBES, torch.empty(0, dtype=torch.int64), alpha=0.5)
NAMES = ("bert", "roberta", "modernbert", "eurobert", "albert")


def eager_attention(name: str, row: int) -> list[Tensor]:
    """Each layer's probabilities (H, L, L) on one canvas without padding."""
    model = tiny_model(name)
    model.set_attn_implementation("eager")
    output = model(input_ids=CANVAS.sequences()[row][None], output_attentions=True)
    assert len(output.attentions) == 3
    return [p[0] for p in output.attentions]


def scores(name: str, rule: str) -> tuple[Tensor, int]:
    denoiser = tiny_denoiser(name)
    prediction = denoiser.predict(CANVAS, POSITIONS, "attention")
    return denoiser.bridge_scores(prediction, REQUEST, rule)


def received_and_paid(name: str) -> tuple[Tensor, Tensor]:
    received, paid = torch.zeros(2, 21).double(), torch.zeros(2, 21).double()
    for row, length in enumerate(CANVAS.lengths):
        for p in eager_attention(name, row):
            for probe in PROBES[row].tolist():
                received[row, :length] += p[:, probe].sum(0)
            for candidate in CANDIDATES[row].tolist():
                if candidate >= 0:
                    paid[row, :length] += p[:, :, candidate].sum(0)
    return received, paid


@pytest.mark.parametrize("name", NAMES)
def test_attention_received_is_what_probes_pay_to_each_row(name: str) -> None:
    received, _ = received_and_paid(name)
    ours, forwards = scores(name, "received")
    assert forwards == 0
    torch.testing.assert_close(ours.double(), received, rtol=1e-4, atol=1e-5)
    assert float(received[0].sum()) == pytest.approx(2 * 3 * 4, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_received_times_paid_is_the_product_of_the_sums_over_layers_and_heads(name: str) -> None:
    received, paid = received_and_paid(name)
    ours, forwards = scores(name, "received_paid")
    assert forwards == 0
    valid = CANVAS.valid
    expected = (received * paid)[valid]
    torch.testing.assert_close(ours.double()[valid], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["received", "received_paid"])
def test_padding_carries_nothing(rule: str) -> None:
    ours, _ = scores("modernbert", rule)
    assert bool((ours[1, 13:] == 0).all())
    assert bool((ours[1, :13] > 0).any())


def test_a_windowed_layer_sees_only_its_window() -> None:
    denoiser = tiny_denoiser("modernbert")
    layers = denoiser.predict(CANVAS, POSITIONS, "attention").state.layers
    assert [layer.window for layer in layers] == [None, 4, None]
    far = attention_paid(layers[1], torch.tensor([[20], [0]]))
    assert bool((far[0, :16] == 0).all())
    assert bool((far[0, 16:] > 0).all())
    assert bool((far[1, 5:] == 0).all())


def test_paid_attention_is_the_same_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = tiny_denoiser("bert").predict(CANVAS, POSITIONS, "attention").state.layers
    whole = attention_paid(layers[0], CANDIDATES)
    monkeypatch.setattr("boe.denoisers.bridges._ROW_BLOCK", 4)
    torch.testing.assert_close(attention_paid(layers[0], CANDIDATES), whole)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_hidden_change_is_how_far_the_soft_writes_move_the_heads_input(name: str) -> None:
    plain = plain_model(name)
    seen: list[Tensor] = []
    plain.get_output_embeddings().register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    embeds, delta = soft_writes(plain, CANVAS, CANDIDATES)
    seen.clear()
    for e in (embeds, written(embeds, CANDIDATES, 0.5 * delta)):
        plain(inputs_embeds=e, attention_mask=CANVAS.valid.long())
    ours, forwards = scores(name, "hidden_change")
    assert forwards == 1
    valid = CANVAS.valid
    expected = (seen[1] - seen[0]).norm(dim=-1)[valid]
    assert float(expected.min()) > 1e-4
    torch.testing.assert_close(ours.double()[valid], expected, rtol=1e-4, atol=1e-5)


def test_bridge_scores_name_what_the_prediction_should_have_kept() -> None:
    denoiser = tiny_denoiser("bert", 1)
    prediction = denoiser.predict(CANVAS, POSITIONS, "keys_values")
    with pytest.raises(ValueError, match="needs a prediction made with keep='attention'"):
        denoiser.bridge_scores(prediction, REQUEST, "received")
