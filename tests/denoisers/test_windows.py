"""Forwards of some rows against keys and values that earlier forwards left in the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import published_references
import pytest
import torch
from counted_rows import published
from foreign_models import MASK as FOREIGN_MASK
from foreign_models import ForeignModel
from published_checkpoints import MASK, WORDS, Published
from tiny_models import ARCHITECTURES, random_words, tiny_denoiser
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers import GradientRequest, UnsupportedModel
from boe.denoisers.base import EntropyGradient, take_rows
from boe.denoisers.intercepted_model import InterceptedDenoiser
from boe.denoisers.windowed import LayerMemory
from boe_kernels import pad_rows

WRITABLE = [v for v in range(44) if v != MASK]


def canvas_of(masks: list[list[int]]) -> Canvas:
    sequences = []
    for k, (length, where) in enumerate(zip((21, 13), masks, strict=True)):
        generator = torch.Generator().manual_seed(k)
        ids = torch.randint(0, WORDS, (length,), generator=generator)
        ids[where] = MASK
        sequences.append(ids)
    return Canvas.of(sequences)


def rows_of(bounds: list[tuple[int, int]]) -> Tensor:
    here = torch.arange(21)
    return pad_rows(torch.stack([(here >= start) & (here < stop) for start, stop in bounds]))


# Masks in the third block of four of the first canvas, and in the second of the other one.
MASKED = canvas_of([[8, 9, 11], [4, 6, 7]])
POSITIONS = torch.tensor([[8, 9, 11], [4, 6, 7]])
BEFORE, NOW = rows_of([(0, 8), (0, 4)]), rows_of([(8, 12), (4, 8)])
CANDIDATES, PROBES = torch.tensor([[9], [4]]), torch.tensor([[8, 11], [6, 7]])


def left_by(name: str, rows: Tensor, memory: LayerMemory | None = None) -> LayerMemory:
    none = POSITIONS[:, :0]
    denoiser = published(name).denoiser
    _, left = denoiser.predict_window(MASKED, none, rows, memory)
    assert isinstance(left, LayerMemory)
    return left


@pytest.mark.parametrize("name", ["sdar", "sdar_moe"])
def test_a_block_is_predicted_from_itself_and_what_the_blocks_before_it_left(name: str) -> None:
    denoiser = published(name).denoiser
    whole = denoiser.predict(MASKED, POSITIONS).logits[..., WRITABLE]
    memory = left_by(name, BEFORE)
    prediction, _ = denoiser.predict_window(MASKED, POSITIONS, NOW, memory)
    torch.testing.assert_close(prediction.logits[..., WRITABLE], whole, rtol=1e-10, atol=1e-10)


def test_what_forwards_left_is_the_whole_forwards_keys_and_values() -> None:
    denoiser = published("sdar").denoiser
    whole = denoiser.predict(MASKED, POSITIONS, "keys_values").state.layers
    memory = left_by("sdar", NOW, left_by("sdar", BEFORE))
    assert len(memory.layers) == len(whole) == 3
    for ours, theirs in zip(memory.layers, whole, strict=True):
        for row, stop in ((0, 12), (1, 8)):
            torch.testing.assert_close(
                ours.k[row, :, :stop], theirs.k[row, :, :stop], rtol=1e-10, atol=1e-10
            )
            torch.testing.assert_close(
                ours.v[row, :, :stop], theirs.v[row, :, :stop], rtol=1e-10, atol=1e-10
            )
            assert bool((ours.k[row, :, stop:] == 0).all())
        assert (ours.scale, ours.block_size) == (theirs.scale, theirs.block_size)


def test_rows_behind_the_window_and_what_was_there_before_it_are_of_no_account() -> None:
    denoiser, filled = published("sdar").denoiser, []
    for layer in left_by("sdar", BEFORE).layers:
        k, v = layer.k.clone(), layer.v.clone()
        for x in (k, v):
            x[0, :, 8:], x[1, :, 4:] = 1e3, -1e3
        filled.append(replace(layer, k=k, v=v))
    clean, _ = denoiser.predict_window(MASKED, POSITIONS, NOW, left_by("sdar", BEFORE))
    other, _ = denoiser.predict_window(MASKED, POSITIONS, NOW, LayerMemory(filled))
    assert torch.equal(other.logits, clean.logits)


def test_a_prefix_that_was_left_by_other_tokens_is_noticed() -> None:
    """The other direction: what is kept is what is used."""
    denoiser = published("sdar").denoiser
    ids = MASKED.ids.clone()
    ids[:, 1] = (ids[:, 1] + 1) % WORDS
    other = Canvas(ids, MASKED.lengths)
    memory = left_by("sdar", BEFORE)
    stale, _ = denoiser.predict_window(other, POSITIONS, NOW, memory)
    still, _ = denoiser.predict_window(MASKED, POSITIONS, NOW, memory)
    assert torch.equal(stale.logits, still.logits), "rows in front of the window are not run"
    fresh = denoiser.predict(other, POSITIONS).logits
    assert float((fresh - stale.logits)[..., WRITABLE].abs().max()) > 1e-3


def assert_gradient_by_hand(model: Published, ours: EntropyGradient, alpha: float) -> None:
    """``ours`` at CANDIDATES, of the entropies at PROBES, is what autograd makes of the
    hand-written network."""
    shift = model.denoiser.facts.logits_shift
    embeds = model.embeds(MASKED.ids)
    z = take_rows(model.logits(embeds, MASKED.valid), CANDIDATES + shift)
    delta = z.softmax(dim=-1) @ model.table - model.table[MASK]
    leaf = embeds.clone()
    for row in range(2):
        leaf[row, CANDIDATES[row, 0]] += alpha * delta[row, 0]
    leaf.requires_grad_()
    logp = take_rows(model.logits(leaf, MASKED.valid), PROBES + shift).log_softmax(dim=-1)
    entropy = -(logp.exp() * logp.clamp_min(-1e30)).sum(dim=(1, 2))
    (grad,) = torch.autograd.grad(entropy.sum(), leaf)
    for mine, theirs in (
        (ours.gradient, take_rows(grad, CANDIDATES)),
        (ours.delta, delta),
        (ours.surrogate, entropy.detach()),
    ):
        assert float(theirs.norm()) > 1e-3
        assert float((mine - theirs).norm()) <= 1e-9 * float(theirs.norm())


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("name", ["sdar", "sdar_moe"])
def test_the_gradient_at_a_kept_prefix_is_that_of_the_hand_written_network(
    name: str, alpha: float
) -> None:
    """Exact with the block's rows active: nothing in front of it depends on the candidates."""
    model = published(name)
    prediction, _ = model.denoiser.predict_window(
        MASKED, POSITIONS, NOW, left_by(name, BEFORE), "keys_values"
    )
    request = GradientRequest(CANDIDATES, PROBES, NOW, alpha=alpha)
    ours = model.denoiser.entropy_gradient(prediction, request)
    assert ours.forwards == 0
    assert ours.replayed_rows.tolist() == [4, 4]
    assert_gradient_by_hand(model, ours, alpha)


def test_what_was_left_can_be_cut_to_some_sequences() -> None:
    denoiser, alone = published("sdar").denoiser, MASKED.select([1])
    memory = left_by("sdar", BEFORE).select([1], alone.length)
    assert [layer.k.shape[2] for layer in memory.layers] == [13] * 3
    ours, _ = denoiser.predict_window(alone, POSITIONS[1:], NOW[1:], memory)
    whole = denoiser.predict(MASKED, POSITIONS).logits[1:]
    torch.testing.assert_close(
        ours.logits[..., WRITABLE], whole[..., WRITABLE], rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("name", ["sdar", "llada", "dream", "mdlm"])
def test_a_window_of_all_rows_is_the_whole_forward_bit_by_bit(name: str) -> None:
    denoiser = published(name).denoiser
    whole = denoiser.predict(MASKED, POSITIONS, "keys_values")
    bare, _ = denoiser.predict_window(MASKED, POSITIONS, None)
    kept, left = denoiser.predict_window(MASKED, POSITIONS, None, keep="keys_values")
    assert torch.equal(bare.logits, whole.logits)
    assert torch.equal(kept.logits, whole.logits)
    assert bare.state is None
    assert isinstance(left, LayerMemory)
    for ours, mine, theirs in zip(left.layers, kept.state.layers, whole.state.layers, strict=True):
        assert torch.equal(ours.k, theirs.k)
        assert torch.equal(mine.v, theirs.v)


# A sequence that runs nothing, and one that runs rows apart from each other.
SCATTERED = torch.tensor([[-1, -1, -1], [0, 4, 12]])


@pytest.mark.parametrize("name", ["llada", "dream", "mdlm"])
def test_a_forward_writes_its_rows_into_the_memory_it_is_given_and_no_other(name: str) -> None:
    denoiser = published(name).denoiser
    _, memory = denoiser.predict_window(MASKED, POSITIONS, None)
    before = memory.select([0, 1], 21)
    ids = MASKED.ids.clone()
    ids[:, [0, 4, 12]] = (ids[:, [0, 4, 12]] + 1) % WORDS
    other = Canvas(ids, MASKED.lengths)
    _, left = denoiser.predict_window(other, POSITIONS[:, :0], SCATTERED, memory)
    changed = torch.zeros(2, 21, dtype=torch.bool)
    changed[1, [0, 4, 12]] = True
    for new, given, old in zip(left.layers, memory.layers, before.layers, strict=True):
        for ours, taken, theirs in ((new.k, given.k, old.k), (new.v, given.v, old.v)):
            assert ours.data_ptr() == taken.data_ptr(), "no copy of the whole"
            moved = (ours != theirs).any(dim=-1).any(dim=1)
            assert torch.equal(moved, changed)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_run_again_one_part_after_the_other_in_one_layer_make_up_the_whole(name: str) -> None:
    """With one layer keys and values depend on a row's own token: stale ones can be made good."""
    denoiser = tiny_denoiser(name, 1)
    old = Canvas.of([random_words(21, [8, 9, 11], seed=1), random_words(13, [4, 6, 7], seed=2)])
    now = Canvas.of([random_words(21, [8, 9, 11], seed=3), random_words(13, [4, 6, 7], seed=4)])
    _, memory = denoiser.predict_window(old, POSITIONS, None)
    first, rest = torch.tensor([[1, 2, 5], [0, 12, -1]]), torch.ones(2, 21, dtype=torch.bool)
    rest &= now.valid
    rest.scatter_(1, first.clamp_min(0), False)
    _, memory = denoiser.predict_window(now, POSITIONS[:, :0], first, memory)
    prediction, _ = denoiser.predict_window(now, POSITIONS, pad_rows(rest), memory)
    whole = denoiser.predict(now, POSITIONS)
    real = whole.logits.isfinite()
    torch.testing.assert_close(prediction.logits[real], whole.logits[real], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_the_gradient_beside_stale_rows_takes_their_keys_and_values_for_constants(
    name: str, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delayed caching: a token was written, and two others long before; masked rows active."""
    model = published(name)
    shift = model.denoiser.facts.logits_shift
    earlier = MASKED.ids.clone()
    earlier[:, 2:4] = MASK
    _, memory = model.denoiser.predict_window(
        Canvas(earlier, MASKED.lengths), POSITIONS, None, keep="keys_values"
    )
    stale = memory.select([0, 1], 21).layers
    live = MASKED.masked(MASK)
    if shift:
        live = live | live.roll(shift, dims=1)
    active = pad_rows(live)
    # Of the two tokens written since, one alone is run again.
    ran = live.clone()
    ran[:, 3] = True
    prediction, _ = model.denoiser.predict_window(
        MASKED, POSITIONS, pad_rows(ran), memory, "keys_values"
    )
    request = GradientRequest(CANDIDATES, PROBES, active, alpha=alpha)
    ours = model.denoiser.entropy_gradient(prediction, request)
    attention, calls, recorded = published_references.attention, [0], []

    def kept(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        layer = calls[0] % 3
        where = (live if len(recorded) == 3 else ran)[:, None, :, None]
        old = recorded[layer] if len(recorded) == 3 else (stale[layer].k, stale[layer].v)
        k, v = (torch.where(where, new, past) for new, past in zip((k, v), old, strict=True))
        if len(recorded) < 3:
            recorded.append((k.detach(), v.detach()))
        calls[0] += 1
        return attention(q, k, v, *rest)

    monkeypatch.setattr(published_references, "attention", kept)
    assert_gradient_by_hand(model, ours, alpha)


@pytest.mark.parametrize("keep", ["attention", "graph", "dense_graph"])
def test_a_window_keeps_no_more_than_a_replay_needs(keep: str) -> None:
    with pytest.raises(ValueError, match=f"got keep='{keep}'"):
        published("sdar").denoiser.predict_window(MASKED, POSITIONS, NOW, None, keep)


def test_models_that_cannot_be_run_on_a_window_say_why() -> None:
    with pytest.raises(UnsupportedModel, match="takes the time as an input"):
        published("sedd").denoiser.predict_window(MASKED, POSITIONS, NOW)
    with pytest.raises(UnsupportedModel, match="takes the time as an input"):
        published("sedd").denoiser.predict_window(MASKED, POSITIONS, None)
    theirs = ForeignModel()
    foreign = InterceptedDenoiser(theirs, FOREIGN_MASK, table=theirs.words, head=theirs.last)
    canvas, positions = Canvas.of(torch.tensor([1, 0, 2])), torch.tensor([[1]])
    why = r"cannot be run on some of its rows \(nothing is known about running"
    with pytest.raises(UnsupportedModel, match=why):
        foreign.predict_window(canvas, positions, positions)
