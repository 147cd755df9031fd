"""Bridge scores against attention probabilities that an eager model hands out itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plain_models import plain_model, soft_writes, written
from tiny_models import random_words, tiny_denoiser, tiny_model
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers import GradientRequest
from boe.denoisers.attention_modes import LayerCall
from boe.denoisers.bridges import attention_paid, attention_received, log_sum_exp

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


@pytest.mark.parametrize("name", ["bert", "modernbert", "eurobert"])
def test_the_forwards_log_sum_exp_is_that_of_scores_computed_in_blocks_of_rows(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boe.denoisers.bridges._ROW_BLOCK", 4)
    for layer in tiny_denoiser(name).predict(CANVAS, POSITIONS, "attention").state.layers:
        computed = log_sum_exp(replace(layer, lse=None))
        assert layer.lse is not None
        valid = CANVAS.valid[:, None].expand_as(computed)
        torch.testing.assert_close(layer.lse[valid], computed[valid])


def test_a_block_causal_layer_receives_and_pays_within_the_blocks_that_are_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 9, 4, generator=generator) for heads in (4, 2))
    valid = torch.arange(9) < torch.tensor([[9], [7]])
    layer = LayerCall(q, k, k, valid, 0.5, block_size=4)
    block = torch.arange(9) // 4
    seen = (block[None, :] <= block[:, None]) & valid[:, None, None]
    p = (q @ k.repeat_interleave(2, dim=1).transpose(-2, -1) * 0.5).masked_fill(~seen, -torch.inf)
    p = p.softmax(dim=-1)
    rows, keys = torch.tensor([[1, 5], [6, -1]]), torch.tensor([[2, 8], [0, -1]])
    received = torch.stack([p[0, :, [1, 5]].sum((0, 1)), p[1, :, 6].sum(0)])
    paid = torch.stack([p[0, :, :, [2, 8]].sum((0, 2)), p[1, :, :, 0].sum(0)])
    torch.testing.assert_close(attention_received(layer, rows), received)
    torch.testing.assert_close(attention_paid(layer, keys), paid)


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
