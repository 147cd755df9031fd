"""PC-Sampler and its background frequencies."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, table_of
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from boe import BackgroundFrequencies, generate, sampler_from
from boe.decoding import StepRecord
from boe.samplers import PCSampler

PROBABILITIES = torch.tensor(
    [
        [0.0, 0.9, 0.05, 0.05],
        [0.0, 0.05, 0.6, 0.35],
        [0.0, 0.1, 0.1, 0.8],
        [0.0, 0.2, 0.7, 0.1],
    ],
    dtype=torch.float64,
)
# Id 1 is common, 2 is rare, 3 never occurred; 0 is the mask.
BACKGROUND = BackgroundFrequencies.of_ids([[1] * 90, torch.tensor([2] * 10)], 4)


def first_step(sampler: PCSampler, **options: object) -> StepRecord:
    denoiser = FakeDenoiser(PROBABILITIES.log())
    result = generate(denoiser, torch.full((4,), MASK), sampler, trajectory=True, **options)
    return result.items[0].trajectory[0]


def calibrated(frequency: dict[int, float], clip: float = 10.0) -> list[float]:
    tops = [(0.9, 1), (0.6, 2), (0.8, 3), (0.7, 2)]
    return [min(-p * math.log(frequency[token] + 1e-9), clip) for p, token in tops]


def test_scores_are_confidence_in_uncommon_tokens_that_fades_with_distance() -> None:
    record = first_step(PCSampler(BACKGROUND, decay=0.3))
    # A token that never occurred counts as once in 100.
    expected = calibrated({1: 0.9, 2: 0.1, 3: 0.01})
    expected = [math.exp(-0.3 * k) * value for k, value in enumerate(expected)]
    assert record.scores.tolist() == pytest.approx(expected)
    assert record.revealed.tolist() == [2]


def test_the_calibrated_confidence_is_clipped() -> None:
    record = first_step(PCSampler(BACKGROUND, decay=0.0, clip=1.0))
    expected = calibrated({1: 0.9, 2: 0.1, 3: 0.01}, clip=1.0)
    assert record.scores.tolist() == pytest.approx(expected)
    assert expected.count(1.0) == 3
    assert record.revealed.tolist() == [1], "clipped scores tie: the lowest position"


def test_without_background_it_is_confidence_that_fades() -> None:
    record = first_step(PCSampler("uniform", decay=0.5))
    expected = [p * math.exp(-0.5 * k) for k, p in enumerate([0.9, 0.6, 0.8, 0.7])]
    assert record.scores.tolist() == pytest.approx(expected)


def test_without_background_no_vocabulary_is_so_large_that_confidence_is_clipped() -> None:
    # ln 30000 is 10.3: −p·ln f of both would be cut off at 10, and tie.
    denoiser = FakeDenoiser(table_of([0.98, 0.99], 30_000))
    canvas = torch.full((2,), MASK)
    sampler = PCSampler("uniform", decay=0.0)
    item = generate(denoiser, canvas, sampler, trajectory=True).items[0]
    assert item.trajectory[0].scores.tolist() == pytest.approx([0.98, 0.99])
    assert item.trajectory[0].revealed.tolist() == [1]


def test_the_linear_form_adds_place_to_normalised_confidence() -> None:
    record = first_step(PCSampler(BACKGROUND, decay=0.4, form="linear"))
    value = calibrated({1: 0.9, 2: 0.1, 3: 0.01})
    low, high = min(value), max(value)
    expected = [0.6 * (v - low) / (high - low) + 0.4 * (4 - k) / 4 for k, v in enumerate(value)]
    assert record.scores.tolist() == pytest.approx(expected)


def test_distance_is_counted_from_the_start_of_the_block() -> None:
    denoiser = FakeDenoiser(PROBABILITIES.log())
    item = generate(
        denoiser,
        torch.full((4,), MASK),
        PCSampler("uniform", decay=1.0),
        block_length=2,
        trajectory=True,
    ).items[0]
    third = item.trajectory[2]
    assert third.positions.tolist() == [2, 3]
    assert third.scores.tolist() == pytest.approx([0.8, 0.7 * math.exp(-1.0)])


# --- the background -------------------------------------------------------------------


def test_frequencies_are_counts_over_the_total_and_unseen_tokens_count_once() -> None:
    assert BACKGROUND.counts.tolist() == [0, 90, 10, 0]
    assert BACKGROUND.frequency().tolist() == pytest.approx([0.01, 0.9, 0.1, 0.01])
    assert (BACKGROUND.total, BACKGROUND.vocab_size) == (100, 4)


def test_texts_are_counted_without_the_tokenizers_special_tokens() -> None:
    inner = Tokenizer(models.WordLevel({"[CLS]": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("[CLS] $A", None, [("[CLS]", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert tokenizer("a b").input_ids == [0, 1, 2]
    frequencies = BackgroundFrequencies.of_texts(["a b a", "b b b b"], tokenizer, 6)
    assert frequencies.counts.tolist() == [0, 2, 5, 0, 0, 0]


def test_frequencies_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "background.json"
    BACKGROUND.save(path)
    assert torch.equal(BackgroundFrequencies.load(path).counts, BACKGROUND.counts)
    assert json.loads(path.read_text()) == {
        "schema": "boe/frequencies/1",
        "vocab_size": 4,
        "total": 100,
        "counts": {"1": 90, "2": 10},
    }
    by_file = first_step(sampler_from(f"pc:frequencies={path},decay=0.3"))
    assert torch.equal(by_file.scores, first_step(PCSampler(BACKGROUND, decay=0.3)).scores)


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "background.json"
    BACKGROUND.save(path)
    sampler = PCSampler(str(path), decay=0.0)
    before = first_step(sampler)
    BackgroundFrequencies.of_ids([[2] * 90, [1] * 10], 4).save(path)
    import os

    os.utime(path, ns=(1, 1))
    assert not torch.equal(first_step(sampler).scores, before.scores)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is not JSON"),
        ("[]", "does not hold token frequencies"),
        ('{"schema": "boe/compare/1"}', "does not hold token frequencies"),
        (
            '{"schema": "boe/frequencies/1", "vocab_size": 3, "total": 9, "counts": {"1": 2}}',
            "is damaged: its counts add up to 2, its total is 9",
        ),
    ],
)
def test_a_file_that_is_no_background_is_refused(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "background.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        PCSampler(str(path))


def test_a_missing_file_is_an_error_at_once_and_never_the_uniform_background() -> None:
    with pytest.raises(FileNotFoundError):
        sampler_from("pc:frequencies=/nowhere/background.json")
    with pytest.raises(ValueError, match=r"frequencies must name a file .*or be 'uniform'"):
        sampler_from("pc")


def test_a_background_of_another_vocabulary_is_refused() -> None:
    background = BackgroundFrequencies.of_ids([[1, 2, 3]], 9)
    with pytest.raises(ValueError, match="frequencies are of 9 tokens; the model has 4"):
        first_step(PCSampler(background))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BackgroundFrequencies.of_ids([[4]], 4), ValueError, r"ids in \[0, 4\), got 4"),
        (lambda: BackgroundFrequencies.of_ids([], 4), ValueError, "at least one token"),
        (lambda: BackgroundFrequencies(torch.ones(3)), TypeError, r"int64 \(V,\), got"),
        (lambda: PCSampler("uniform", decay=-1.0), ValueError, "decay must be finite and not"),
        (lambda: PCSampler("uniform", clip=0.0), ValueError, "clip must be above 0, got 0.0"),
        (lambda: PCSampler("uniform", form="other"), ValueError, "form must be one of"),
        (
            lambda: PCSampler("uniform", form="linear", decay=2.0),
            ValueError,
            r"decay must be in \[0, 1\] with form='linear', got 2.0",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
