"""Tokens drawn by the Triton kernel: the same ones as by the definition."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from splitmix import seed_that_gives
from test_token_sampling import ALL_ONES, logits_of

from boe_kernels import EntropyStats, entropy_stats, sample_tokens
from boe_kernels.entropy.triton import parameters
from boe_kernels.entropy.triton.parameters import RowCut, VocabularyLaunch
from boe_kernels.token_sampling.noise import gumbel_noise
from boe_kernels.token_sampling.noise_triton import exponential

pytestmark = pytest.mark.usefixtures("poisoned_allocations", "interpreted")

DTYPES = (torch.float32, torch.float16)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 threads, so that rows of 300 ids have 5 parts of 2 tiles each."""
    launch = VocabularyLaunch(warps=1, threads=2, whole_rows=2, gradient_loads=1)
    assert RowCut.of(300, launch) == RowCut(part_tiles=2, parts=5)
    for architecture in parameters.LAUNCH:
        monkeypatch.setitem(parameters.LAUNCH, architecture, launch)


@triton.jit
def _noise_kernel(seeds_ptr, noise_ptr, VOCABULARY: tl.constexpr):
    row = tl.program_id(0)
    ids = tl.arange(0, VOCABULARY)
    tl.store(noise_ptr + row * VOCABULARY + ids, exponential(tl.load(seeds_ptr + row), ids))


def exponential_noise(seeds: torch.Tensor, vocabulary: int) -> torch.Tensor:
    result = torch.empty(len(seeds), vocabulary)
    _noise_kernel[(len(seeds),)](seeds, result, vocabulary)
    return result


def assert_same_noise(seeds: torch.Tensor, vocabulary: int) -> None:
    expected = (-gumbel_noise(seeds, vocabulary)).exp()
    actual = exponential_noise(seeds, vocabulary)
    # A relative error of E is an absolute one of the Gumbel noise −ln E.
    assert (actual / expected - 1).abs().max() <= 4 * torch.finfo(torch.float32).eps


def test_the_noise_is_the_defined_one_in_float32():
    assert_same_noise(torch.tensor([0, 1, -1, 1 << 62, -(1 << 63)]), 1 << 16)


BITS = (0, 1, 1 << 31, 1 << 40, ALL_ONES >> 1, (ALL_ONES >> 1) + 1)


@pytest.mark.parametrize("bits", [*BITS, *(ALL_ONES - bits for bits in BITS)], ids=hex)
def test_float32_keeps_both_tails_of_the_noise(bits):
    seeds = torch.tensor([seed_that_gives(bits, token) for token in range(4)])
    assert_same_noise(seeds, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_tokens_are_those_of_the_reference(temperature, dtype):
    logits, seeds = logits_of(6, 300, dtype=dtype), torch.arange(100, 106)
    ids = torch.tensor([7])
    options = {"temperature": temperature, "suppressed_ids": ids}
    sample = sample_tokens(logits, seeds, backend="triton", **options)
    score = logits.double() / temperature + gumbel_noise(seeds, 300)
    best = score.index_fill(1, ids, -torch.inf).topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-4, "the case is ill-posed: rounding may decide"
    expected = sample_tokens(logits, seeds, backend="reference", **options)
    assert torch.equal(sample.token, expected.token)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_large_logits_cost_the_draw_no_precision(offset):
    # Float32 has 1/1024 to spare at 10⁴: scores of that size would round noise away.
    logits = (logits_of(8, 200) * 64).round() / 64 + offset
    seeds = torch.arange(8)
    sample = sample_tokens(logits, seeds, backend="triton")
    assert torch.equal(sample.token, sample_tokens(logits, seeds, backend="reference").token)


def test_a_token_that_is_40_nats_behind_can_still_be_drawn():
    places = torch.tensor([0, 1, 130, 250])
    logits = torch.full((4, 251), -60.0)
    logits[:, 100] = 0.0
    logits[torch.arange(4), places] = -40.0
    seeds = torch.tensor([seed_that_gives(ALL_ONES, int(place)) for place in places])
    assert torch.equal(sample_tokens(logits, seeds, backend="triton").token, places)


def test_impossible_and_suppressed_ids_are_never_drawn():
    logits = torch.full((6, 300), -torch.inf)
    logits[:, [5, 6, 140, 290]] = torch.tensor([1.0, 0.0, 0.5, 0.7])
    token = sample_tokens(
        logits, torch.arange(6), suppressed_ids=torch.tensor([5]), backend="triton"
    ).token
    assert set(token.tolist()) <= {6, 140, 290}
    assert len(set(token.tolist())) > 1


@pytest.mark.parametrize("spoilt", [-torch.inf, torch.nan, torch.inf])
def test_a_row_without_a_distribution_has_nan_statistics_and_spoils_no_other(spoilt):
    logits, seeds = logits_of(3, 200), torch.arange(3)
    expected = sample_tokens(logits, seeds, backend="triton").token
    logits[1] = spoilt
    sample = sample_tokens(logits, seeds, backend="triton")
    assert sample.stats.entropy.isnan().tolist() == [False, True, False]
    assert torch.equal(sample.token[[0, 2]], expected[[0, 2]])
    assert 0 <= int(sample.token[1]) < 200


def test_the_statistics_are_those_of_entropy_stats_bit_for_bit():
    logits, ids = logits_of(3, 300), torch.arange(9)
    sample = sample_tokens(logits, torch.arange(3), suppressed_ids=ids, backend="triton")
    expected = entropy_stats(logits, suppressed_ids=ids, backend="triton")
    for name, value, right in zip(EntropyStats._fields, sample.stats, expected, strict=True):
        assert torch.equal(value, right), name


def test_repeated_draws_and_rows_alone_give_the_same_tokens():
    logits, seeds = logits_of(3, 150), torch.arange(3)
    together = sample_tokens(logits, seeds, backend="triton").token
    assert torch.equal(sample_tokens(logits, seeds, backend="triton").token, together)
    alone = [
        sample_tokens(logits[i : i + 1], seeds[i : i + 1], backend="triton").token for i in range(3)
    ]
    assert torch.equal(torch.cat(alone), together)
