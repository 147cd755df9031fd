"""Lookahead against the frozen context of the step's forward."""

from __future__ import annotations

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, table_of
from tiny_models import MASK_ID, random_words, tiny_denoiser
from torch import Tensor

from boe import TokensPerStep, generate, sampler_from
from boe.canvas import Canvas
from boe.decoding import Generation
from boe.denoisers import UnsupportedModel
from boe_kernels import entropy_stats

MASKS = [1, 4, 5, 9, 10]


def decode(spec: str, canvas: Tensor | list[Tensor], name: str = "bert", **options) -> Generation:
    shift = options.pop("logits_shift", 0)
    denoiser = tiny_denoiser(name, logits_shift=shift)
    return generate(denoiser, canvas, spec, trajectory=True, **options)


def gains_by_windows(canvas: Tensor) -> list[float]:
    """Each mask's gain: its top token written, and the masked rows alone run again, by the
    windows that KV caches are made of."""
    denoiser = tiny_denoiser("bert")
    masks, everything = torch.tensor([MASKS]), torch.arange(len(canvas)).unsqueeze(0)
    whole = Canvas(canvas.unsqueeze(0), (len(canvas),))
    prediction, left = denoiser.predict_window(whole, masks, everything)
    before = entropy_stats(prediction.logits).entropy[0]
    gains = []
    for k, position in enumerate(MASKS):
        written = canvas.clone()
        written[position] = prediction.logits[0, k].argmax()
        tried = Canvas(written.unsqueeze(0), (len(canvas),))
        after, _ = denoiser.predict_window(tried, masks, masks, left)
        others = torch.arange(len(MASKS)) != k
        entropy = entropy_stats(after.logits).entropy[0]
        gains.append(float((before - entropy)[others].sum()))
    return gains


def test_the_gain_is_that_of_the_masked_rows_against_the_forwards_keys_and_values() -> None:
    canvas = random_words(14, MASKS)
    record = decode("lookahead:candidates=all,context=frozen", canvas).items[0].trajectory[0]
    assert record.scores.tolist() == pytest.approx(gains_by_windows(canvas), rel=1e-6, abs=1e-9)
    full = decode("lookahead:candidates=all", canvas).items[0].trajectory[0]
    assert full.scores.tolist() != pytest.approx(record.scores.tolist(), abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"logits_shift": -1}, {"guidance": 1.5}])
@pytest.mark.parametrize("tokens", [1, 3])
def test_where_every_row_is_masked_nothing_is_frozen(tokens: int, options: dict) -> None:
    canvas = torch.full((6,), MASK_ID)
    specs = [f"lookahead:rho=1,tokens={tokens},context={c}" for c in ("full", "frozen")]
    full, frozen = (decode(spec, canvas, **options).items[0].trajectory[0] for spec in specs)
    torch.testing.assert_close(full.scores, frozen.scores, rtol=1e-6, atol=1e-9)


def test_a_try_costs_the_masked_rows_and_no_forward() -> None:
    canvas = random_words(14, MASKS)
    spec = "lookahead:candidates=all,context=frozen,tokens=2"
    account = decode(spec, canvas).items[0].account
    # Masks are 5, 4, 3, 2 at the steps with a choice, each with two tokens tried.
    assert account.nfe_forward == 5
    assert account.flop_equiv == pytest.approx(5 + 2 * (25 + 16 + 9 + 4) / 14)


def test_guidance_runs_the_rows_of_both_branches() -> None:
    canvas = random_words(14, MASKS)
    account = decode("lookahead:candidates=all,context=frozen", canvas, guidance=1.0).items[0]
    assert account.account.flop_equiv == pytest.approx(2 * (5 + (25 + 16 + 9 + 4) / 14))


def test_shifted_rows_that_predict_a_mask_are_run_too() -> None:
    canvas = random_words(14, MASKS)
    spec = "lookahead:candidates=all,context=frozen"
    generation = decode(spec, canvas, logits_shift=-1, budget=TokensPerStep(4))
    # Masks and the rows before them, 0, 1, 3, 4, 5, 8, 9, 10, but at each try the row that
    # predicts the written position alone: row 0 of position 1, 3 of 4, 8 of 9.
    assert generation.items[0].account.flop_equiv == pytest.approx(2 + (3 * 7 + 2 * 8) / 14)


@pytest.mark.parametrize("options", ["tokens=2", "joint=true"])
def test_sequences_of_a_batch_get_what_they_get_alone(options: str) -> None:
    canvases = [random_words(14, MASKS), random_words(9, [0, 3, 4, 8], 1), random_words(5, [2], 2)]
    spec, budget = f"lookahead:rho=1,context=frozen,{options}", TokensPerStep(2)
    together = decode(spec, canvases, budget=budget)
    for number, canvas in enumerate(canvases):
        alone = decode(spec, canvas, budget=budget, item_ids=[number]).items[0]
        assert torch.equal(together.items[number].ids, alone.ids)
        pairs = zip(together.items[number].trajectory, alone.trajectory, strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours.scores, theirs.scores)


def test_a_denoiser_that_cannot_run_some_of_its_rows_is_refused() -> None:
    denoiser = FakeDenoiser(table_of([0.9, 0.3, 0.8]))
    with pytest.raises(UnsupportedModel, match="FakeDenoiser cannot be run on some of its rows"):
        generate(denoiser, torch.full((3,), MASK), "lookahead:rho=1,context=frozen")


def test_an_unknown_context_is_refused() -> None:
    with pytest.raises(ValueError, match="context must be one of frozen, full, got 'cached'"):
        sampler_from("lookahead:context=cached")
