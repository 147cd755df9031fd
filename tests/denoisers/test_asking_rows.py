"""Replays of the sequences of a batch that ask for a gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_checkpoints import MASK, WORDS, load_published
from tiny_models import random_words, tiny_denoiser
from torch import Tensor

from boe import BoE, CompiledDenoiser, TokensPerStep, generate
from boe.canvas import Canvas
from boe.decoding.forwards import Forwards
from boe.denoisers import EntropyGradient, GradientRequest, Prediction
from boe.denoisers.attention_denoiser import AttentionDenoiser

# Three canvases of 14, 9 and 12 positions.
MASKS = ([1, 3, 4, 7, 9, 12], [0, 2, 5], [0, 1, 6, 8, 11])
CANVAS = Canvas.of(
    [random_words(length, masks, length) for length, masks in zip((14, 9, 12), MASKS, strict=True)]
)
POSITIONS = torch.tensor([[1, 3, 4, 7, 9, 12], [0, 2, 5, -1, -1, -1], [0, 1, 6, 8, 11, -1]])
CANDIDATES = torch.tensor([[3, 9], [2, -1], [0, 6]])
PROBES = torch.tensor([[1, 4, 7, 12], [0, 5, -1, -1], [1, 8, 11, -1]])
REQUEST = GradientRequest(
    CANDIDATES, PROBES, POSITIONS, alpha=0.5, revealed=torch.tensor([2, 1, 1])
)
FIELDS = ("gradient", "delta", "surrogate", "replayed_rows", "backward_rows")


def asking(*rows: int, request: GradientRequest = REQUEST) -> GradientRequest:
    """The request of these sequences; the others ask for nothing."""
    silent = torch.tensor([[k not in rows] for k in range(3)])
    sets = {
        name: getattr(request, name).masked_fill(silent, -1)
        for name in ("candidates", "probes", "active")
    }
    return replace(request, **sets)


def whole_batch(
    denoiser: AttentionDenoiser,
    prediction: Prediction,
    request: GradientRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> EntropyGradient:
    """The gradient when no sequence is left out."""
    with monkeypatch.context() as patch:
        patch.setattr(type(denoiser), "replay_batch", lambda self, count, batch: batch)
        return denoiser.entropy_gradient(prediction, request)


def batches_run(denoiser: AttentionDenoiser, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which every forward from now on adds how many sequences it runs."""
    seen: list[int] = []
    run = denoiser.run

    def counted(embeds: Tensor, *args: object, **options: object) -> object:
        seen.append(embeds.shape[0])
        return run(embeds, *args, **options)

    monkeypatch.setattr(denoiser, "run", counted)
    return seen


def assert_same(ours: EntropyGradient, theirs: EntropyGradient) -> None:
    assert float(theirs.gradient.norm()) > 1e-3
    for name in FIELDS:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.shape == b.shape
        assert float((a - b).double().norm()) <= 1e-9 * float(b.double().norm())
    assert (ours.forwards, ours.backwards) == (theirs.forwards, theirs.backwards)


@pytest.mark.parametrize("rows", [(0,), (1,), (0, 2), (1, 2)])
@pytest.mark.parametrize("context", ["frozen", "full"])
def test_sequences_that_ask_for_nothing_are_not_run_and_change_nothing(
    rows: tuple[int, ...], context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = tiny_denoiser("bert", 2)
    prediction = denoiser.predict(CANVAS, POSITIONS, "keys_values")
    request = replace(asking(*rows), context=context)
    expected = whole_batch(denoiser, prediction, request, monkeypatch)
    seen = batches_run(denoiser, monkeypatch)
    result = denoiser.entropy_gradient(prediction, request)
    assert seen == [len(rows)] * (1 if context == "frozen" else 2)
    assert_same(result, expected)
    others = [k for k in range(3) if k not in rows]
    for name in FIELDS:
        assert not getattr(result, name)[others].any()


def test_what_a_sequence_gets_does_not_depend_on_who_else_asks() -> None:
    denoiser = tiny_denoiser("roberta_pre_layer_norm", 2)
    prediction = denoiser.predict(CANVAS, POSITIONS, "keys_values")
    together = denoiser.entropy_gradient(prediction, REQUEST)
    for row in range(3):
        alone = denoiser.entropy_gradient(prediction, asking(row))
        for name in FIELDS:
            torch.testing.assert_close(getattr(alone, name)[row], getattr(together, name)[row])


def test_where_every_sequence_asks_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = tiny_denoiser("bert", 1)
    prediction = denoiser.predict(CANVAS, POSITIONS, "keys_values")
    monkeypatch.setattr(type(prediction.state), "select", None)
    assert float(denoiser.entropy_gradient(prediction, REQUEST).gradient.norm()) > 1e-3


def test_where_no_sequence_asks_the_gradient_is_zero() -> None:
    denoiser = tiny_denoiser("bert", 1)
    prediction = denoiser.predict(CANVAS, POSITIONS, "keys_values")
    result = denoiser.entropy_gradient(prediction, asking())
    assert result.gradient.shape == (3, 2, 32)
    assert not result.gradient.any()
    assert not result.backward_rows.any()


def test_both_branches_of_guidance_leave_the_same_sequences_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    denoiser = tiny_denoiser("bert", 2)
    given = CANVAS.ids != denoiser.facts.mask_id
    forwards = Forwards(denoiser, 0.8, combined=True)
    prediction = forwards.predict(CANVAS, given, POSITIONS, "keys_values")
    expected = whole_batch(denoiser, prediction, asking(2), monkeypatch)
    seen = batches_run(denoiser, monkeypatch)
    assert_same(denoiser.entropy_gradient(prediction, asking(2)), expected)
    assert seen == [1, 1]


def test_a_candidates_own_entropy_is_removed_where_its_sequence_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    denoiser = tiny_denoiser("bert", 2)
    prediction = denoiser.predict(CANVAS, POSITIONS, "keys_values")
    request = replace(asking(0, request=replace(REQUEST, probes=POSITIONS)), subtract_self=True)
    expected = whole_batch(denoiser, prediction, request, monkeypatch)
    assert_same(denoiser.entropy_gradient(prediction, request), expected)


def test_a_time_conditioned_model_has_each_sequences_own_next_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = load_published("sedd", tmp_path).denoiser
    canvas = Canvas(CANVAS.ids.remainder(WORDS), CANVAS.lengths)
    canvas.ids.scatter_(1, POSITIONS.clamp_min(0), MASK)
    prediction = denoiser.predict(canvas, POSITIONS, "keys_values")
    for context in ("frozen", "full"):
        request = replace(asking(1), context=context)
        expected = whole_batch(denoiser, prediction, request, monkeypatch)
        assert_same(denoiser.entropy_gradient(prediction, request), expected)


def test_a_compiled_replay_of_one_sequence_shares_the_code_of_several() -> None:
    compiled = CompiledDenoiser(tiny_denoiser("bert", 1), backend="aot_eager")
    assert [compiled.replay_batch(count, 5) for count in (1, 2, 3, 5)] == [2, 2, 3, 5]
    assert compiled.replay_batch(1, 1) == 1
    # With CUDA graphs every size is a recording.
    compiled.cuda_graphs = True
    assert [compiled.replay_batch(count, 7) for count in (1, 2, 3, 5)] == [2, 2, 4, 7]


def test_a_decode_replays_the_sequences_that_steer_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    denoiser = tiny_denoiser("bert", 1)
    canvases = [random_words(12, list(range(2 * k, 12)), seed=k) for k in range(4)]
    seen = batches_run(denoiser, monkeypatch)
    result = generate(
        denoiser,
        canvases,
        BoE(tolerance=None, rho=0.5),
        budget=TokensPerStep(3),
        trajectory=True,
    )
    # Step by step, a forward of the sequences that are left, then those that have scores.
    left = [len(item.trajectory) for item in result.items]
    expected = []
    for index in range(max(left)):
        expected.append(sum(index < steps for steps in left))
        steering = sum(
            index < steps and bool(item.trajectory[index].parts["candidate"].any())
            for item, steps in zip(result.items, left, strict=True)
            if index < steps and "candidate" in item.trajectory[index].parts
        )
        expected += [steering] if steering else []
    assert seen == expected
    assert any(steering < 4 for steering in expected[1:2])
