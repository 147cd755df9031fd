"""Batches that do not fit into memory, and sequences that fail alone."""

from __future__ import annotations

import weakref

import pytest
import torch
from fake_denoiser import MASK, Cramped, FakeDenoiser, table_of
from tiny_models import MASK_ID, random_words, tiny_denoiser
from torch import Tensor

from boe import Item, TokensPerStep, generate, sampler_from
from boe.decoding.setbacks import Room
from boe.denoisers.transformers_model import TransformersDenoiser

MASKS = [1, 2, 4, 6, 7, 9]


def canvases() -> list[Tensor]:
    return [random_words(12 + k, MASKS, seed=k) for k in range(5)]


STEERED = "boe:tolerance=none,rho=0.6"


@pytest.mark.parametrize(
    ("where", "sampler"),
    [
        ("predict", "random"),
        ("predict", STEERED),
        ("entropy_gradient", STEERED),
        # Its memory is written before the gradient fails, and must not be written twice.
        ("entropy_gradient", f"{STEERED}+klass:confidence=0.05,divergence=0.5,history=2"),
    ],
)
def test_a_batch_without_memory_goes_on_in_halves_with_the_same_results(
    where: str, sampler: str
) -> None:
    options = {"budget": TokensPerStep(2), "temperature": 1.0}
    whole = generate(tiny_denoiser("bert", 1), canvases(), sampler, **options)
    denoiser = tiny_denoiser("bert", 1)
    cramped = Cramped(denoiser, 1, where)
    parts = generate(denoiser, canvases(), sampler, **options)
    for mine, theirs in zip(parts.sequences, whole.sequences, strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(parts.items, whole.items, strict=True):
        assert mine.account.steps == theirs.account.steps
        assert mine.account.nfe_forward == theirs.account.nfe_forward
        assert mine.account.n_backward == theirs.account.n_backward
    failed = [size for size in cramped.sizes if size > 1]
    assert failed == [5, 2], "each size is tried once: 5, then its halves, then single rows"


def test_a_later_batch_is_no_larger_than_what_was_found_to_fit() -> None:
    denoiser = tiny_denoiser("bert", 1)
    cramped = Cramped(denoiser, 2, "predict")
    generate(denoiser, [*canvases(), *canvases()], "confidence", batch_size=5)
    assert [size for size in cramped.sizes if size > 2] == [5]


def test_particles_are_split_too() -> None:
    spec = "random+smc:particles=4,every=2"
    options = {"temperature": 1.0}
    whole = generate(tiny_denoiser("bert", 1), canvases()[:2], spec, **options)
    denoiser = tiny_denoiser("bert", 1)
    cramped = Cramped(denoiser, 3, "predict")
    parts = generate(denoiser, canvases()[:2], spec, **options)
    assert all(map(torch.equal, parts.sequences, whole.sequences))
    assert [size for size in cramped.sizes if size > 3] == [8, 4]


def test_a_sequence_that_does_not_fit_by_itself_is_named() -> None:
    denoiser = tiny_denoiser("bert", 1)
    Cramped(denoiser, 0, "predict")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        generate(denoiser, canvases()[:2], "confidence")
    assert caught.value.__notes__ == ["sequence 0, of 12 positions, does not fit by itself"]


class _PickyDenoiser(TransformersDenoiser):
    """Runs out of memory, whatever the batch, if a canvas has 14 positions."""

    def predict(self, canvas, positions, keep="nothing"):
        if 14 in canvas.lengths:
            raise torch.OutOfMemoryError("no memory")
        return super().predict(canvas, positions, keep)


def test_kept_failures_end_only_the_sequence_that_does_not_fit() -> None:
    whole = generate(tiny_denoiser("bert", 1), canvases(), STEERED)
    denoiser = tiny_denoiser("bert", 1)
    denoiser.__class__ = _PickyDenoiser
    parts = generate(denoiser, canvases(), STEERED, failures="keep")
    assert parts.failed == [2]
    assert isinstance(parts.items[2].error, torch.OutOfMemoryError)
    assert torch.equal(parts.sequences[2], canvases()[2]), "it keeps what it had"
    for k in (0, 1, 3, 4):
        assert torch.equal(parts.sequences[k], whole.sequences[k])


class _FlawedDenoiser(FakeDenoiser):
    """NaN for every canvas that begins with id 5, or has it second."""

    def predict(self, canvas, positions, keep="nothing"):
        prediction = super().predict(canvas, positions, keep)
        prediction.logits[(canvas.ids[:, :2] == 5).any(dim=1)] = torch.nan
        return prediction


def flawed() -> _FlawedDenoiser:
    return _FlawedDenoiser(table_of([0.9, 0.3, 0.8, 0.4, 0.7, 0.6]))


def test_kept_failures_name_the_position_and_leave_the_other_sequences_alone() -> None:
    given = [[1, 2], [5, 2], [3, 3], [5, 5]]
    batch = torch.tensor([[*start, MASK, MASK, MASK, MASK] for start in given])
    result = generate(flawed(), batch, "confidence", failures="keep")
    assert result.failed == [1, 3]
    message = "logits for sequence 3, position 2 are NaN"
    assert message in str(result.items[3].error)
    alone = generate(flawed(), batch[0], "confidence", failures="keep").sequences[0]
    assert torch.equal(result.sequences[0], alone)
    assert result.items[1].account.steps == 0


def test_failures_are_raised_unless_they_are_to_be_kept() -> None:
    batch = torch.tensor([[1, 2, MASK], [5, 2, MASK]])
    with pytest.raises(ValueError, match="sequence 1, position 2 are NaN"):
        generate(flawed(), batch, "confidence")


def test_kept_failures_do_not_go_with_particles_nor_with_other_words() -> None:
    denoiser, spec = flawed(), "random+smc:every=2"
    with pytest.raises(ValueError, match="failures='keep' does not go with particles"):
        generate(denoiser, torch.tensor([MASK]), spec, temperature=1.0, failures="keep")
    with pytest.raises(ValueError, match="failures must be one of raise, keep, got 'ignore'"):
        generate(denoiser, torch.tensor([MASK]), "random", failures="ignore")


@pytest.mark.parametrize(
    ("rows", "count", "sizes"),
    [(None, 7, [7]), (3, 7, [3, 2, 2]), (1, 3, [1, 1, 1]), (8, 3, [3]), (2, 0, [])],
)
def test_room_shares_rows_out_evenly(rows: int | None, count: int, sizes: list[int]) -> None:
    parts = Room(rows).parts(count)
    assert [len(part) for part in parts if len(part)] == sizes
    assert [k for part in parts for k in part] == list(range(count))


# --- what will not change any more ----------------------------------------------------


@pytest.mark.parametrize(
    "sampler",
    ["confidence", "p2", "confidence+remdm-cap:eta=0.5", "remdm-llada:loops=2,ratio=0.7"],
)
@pytest.mark.parametrize("block_length", [None, 3])
def test_what_is_called_final_never_changes_and_grows_to_the_end(
    sampler: str, block_length: int | None
) -> None:
    canvas = random_words(14, [3, 4, 5, 6, 8, 9, 10, 11, 12])
    seen: list[tuple[int, list[int]]] = []

    def note(number: int, item: Item) -> None:
        seen.append((item.final, item.ids.tolist()))

    denoiser = tiny_denoiser("bert", 1)
    result = generate(
        denoiser, canvas, sampler, block_length=block_length, temperature=1.0, on_step=note
    )
    last = result.sequences[0].tolist()
    finals = [final for final, _ in seen]
    assert finals == sorted(finals)
    assert finals[-1] == len(last)
    for final, ids in seen:
        assert ids[:final] == last[:final]
        assert MASK_ID not in ids[:final]
    if sampler_from(sampler).takes_back and block_length is None:
        assert set(finals[:-1]) <= {3}


def test_of_particles_nothing_is_final_before_the_end() -> None:
    seen: list[int] = []
    generate(
        tiny_denoiser("bert", 1),
        random_words(8, [1, 2, 3, 4]),
        "random+smc:every=1,particles=2",
        temperature=1.0,
        on_step=lambda number, item: seen.append(item.final),
    )
    assert set(seen) == {0}


@pytest.mark.parametrize("sampler", ["confidence", STEERED])
def test_no_step_holds_on_to_the_prediction_of_the_one_before(sampler: str) -> None:
    """A prediction keeps the keys and values of every layer: two would not fit."""
    denoiser = tiny_denoiser("bert", 1)
    plain, made = denoiser.predict, []

    def predict(canvas, positions, keep="nothing"):
        assert [reference() for reference in made] == [None] * len(made)
        prediction = plain(canvas, positions, keep)
        made.append(weakref.ref(prediction))
        return prediction

    denoiser.predict = predict  # type: ignore[method-assign]
    generate(denoiser, canvases(), sampler, budget=TokensPerStep(2), batch_size=3)
    assert len(made) == 6
