"""Vocabulary statistics by the native kernels, in every variant that this processor runs."""

from __future__ import annotations

import math

import pytest
import torch
from error_bounds import FORWARD_FACTOR, GRADIENT_FACTOR, assert_as_accurate, largest
from test_entropy import assert_matches_categorical, distributions, entropy_and_gradient
from torch import Tensor

from boe_kernels import EntropyStats, entropy_stats
from boe_kernels.entropy import native

pytestmark = pytest.mark.usefixtures("poisoned_allocations", "native_variant")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Around the lanes of a register (4, 8, 16), a step (32) and a block (4096) of the kernels.
SIZES = (1, 2, 15, 16, 17, 63, 127, 129, 1000, 4095, 4096, 4097, 9001)
LONG = 9001


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def results(logits: Tensor, **options: object) -> tuple[Tensor, ...]:
    """The five statistics and the gradient."""
    stats, gradient = entropy_and_gradient(
        logits, torch.ones(logits.shape[:-1]), backend="native", **options
    )
    return *(value.detach() for value in stats), gradient


def assert_same_bits(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert len(actual) == len(expected)
    for name, a, e in zip((*EntropyStats._fields, "gradient"), actual, expected, strict=False):
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True, msg=name)


# --- values and gradients -----------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids="V={}".format)
def test_any_size_of_vocabulary_is_as_accurate_as_torch_distributions(size, dtype):
    assert_matches_categorical(random_logits(3, size).to(dtype), backend="native")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", distributions())
def test_flat_and_peaked_distributions_are_as_accurate_as_torch_distributions(distribution, dtype):
    assert_matches_categorical(distributions()[distribution].to(dtype), backend="native")


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4], ids="scale {}".format)
def test_long_rows_cost_no_accuracy(scale):
    logits = scale * random_logits(4, 3 * LONG)
    exact = entropy_stats(logits.double(), backend="reference")[:4]
    exponent = largest(logits) + math.log(3 * LONG)
    for name, actual, truth in zip(EntropyStats._fields, results(logits), exact, strict=False):
        # As if each were computed exactly and rounded: sums of 27,003 terms add nothing.
        assert_as_accurate(name, actual, truth, truth.float(), FORWARD_FACTOR, exponent)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_certain_row_is_exact(dtype):
    logits = torch.full((2, LONG), -torch.inf, dtype=dtype)
    logits[0, 5000], logits[1, 8] = 3.0, -7.5
    logits[1, 9] = -2e3
    entropy, lse, top1, top2, argmax, gradient = results(logits)
    assert entropy.tolist() == [0.0, 0.0]
    assert lse.tolist() == [3.0, -7.5]
    assert top1.tolist() == [1.0, 1.0]
    assert top2.tolist() == [0.0, 0.0]
    assert argmax.tolist() == [5000, 8]
    assert not gradient.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_logits_have_the_entropy_of_the_uniform_distribution(dtype):
    for value in (-torch.finfo(dtype).max, -3.0, 0.0, torch.finfo(dtype).max):
        entropy, _, top1, top2, argmax, _ = results(torch.full((1, LONG), value, dtype=dtype))
        assert entropy.item() == pytest.approx(math.log(LONG), rel=1e-7)
        assert top1.item() == top2.item() == pytest.approx(1 / LONG, rel=1e-7)
        assert argmax.item() == 0


def test_impossible_blocks_before_the_first_possible_id_leave_no_trace():
    logits = torch.full((3, LONG), -torch.inf)
    logits[0, 8000:] = random_logits(LONG - 8000)
    # The lowest finite number, with which many programs mask, is far below all others too.
    logits[1] = logits[0].clamp_min(-torch.finfo(torch.float32).max)
    logits[2, :5] = random_logits(5)
    *stats, gradient = results(logits)
    assert_matches_categorical(logits[::2], backend="native")
    assert all(torch.equal(value[0], value[1]) for value in stats)
    assert not gradient[:2, :8000].any()
    assert not gradient[2, 5:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_made_with_the_statistics_is_as_accurate_as_the_separate_one(dtype):
    logits = (3 * random_logits(5, LONG)).to(dtype)
    ids = torch.tensor([4096, 3])
    grad, in_place = torch.empty_like(logits), logits.clone()
    stats, same_stats = native.empty_stats(logits), native.empty_stats(logits)
    native.write_stats(stats, logits, ids, grad)
    native.write_stats(same_stats, in_place, ids, in_place)
    assert_same_bits((*same_stats, in_place), (*stats, grad))
    *expected, plain = results(logits, suppressed_ids=ids)
    assert_same_bits(stats, tuple(expected))
    assert not grad[:, ids].any()
    _, truth = entropy_and_gradient(logits.double(), torch.ones(5).double(), suppressed_ids=ids)
    exponent = largest(logits) + math.log(LONG)
    assert_as_accurate("gradient", grad, truth, plain, GRADIENT_FACTOR, exponent)


# --- suppressed ids -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "ids",
    [[0], [LONG - 1], [4095, 4096], [8192, 17, 17, 4096, 0, 9000], range(LONG - 3), []],
    ids=["first", "last", "at a border", "unsorted and repeated", "nearly all", "none"],
)
def test_suppressed_ids_count_as_minus_infinity_to_the_bit(ids, dtype):
    logits = random_logits(3, LONG).to(dtype)
    before = logits.clone()
    ids = torch.tensor(list(ids), dtype=torch.int64)
    actual = results(logits, suppressed_ids=ids)
    assert_same_bits(actual, results(logits.index_fill(-1, ids, -torch.inf)))
    assert torch.equal(logits, before), "the logits are not modified"
    assert not actual[-1][:, ids].any()


# --- special rows -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES[1:], ids="V={}".format)
def test_in_a_tie_the_lowest_id_wins_and_both_probabilities_are_equal(size, dtype):
    places = sorted({0, 1, size // 2, *(p for p in (15, 31, 32, 4095, 4096) if p < size), size - 1})
    pairs = [(low, high) for low in places for high in places if low < high]
    logits = random_logits(len(pairs), size).clamp(-3, 3).to(dtype)
    for row, pair in enumerate(pairs):
        logits[row, list(pair)] = 9.0
    stats = entropy_stats(logits, backend="native")
    assert stats.argmax.tolist() == [low for low, _ in pairs]
    assert torch.equal(stats.top1, stats.top2)


@pytest.mark.parametrize("size", SIZES[1:], ids="V={}".format)
def test_the_top_two_are_found_wherever_they_stand(size):
    places = sorted({0, 1, size // 2, *(p for p in (15, 31, 32, 4095, 4096) if p < size), size - 1})
    pairs = [(first, second) for first in places for second in places if first != second]
    logits = random_logits(len(pairs), size).clamp(-3, 3)
    for row, (first, second) in enumerate(pairs):
        logits[row, first], logits[row, second] = 5.0, 4.0
    stats = entropy_stats(logits, backend="native")
    assert stats.argmax.tolist() == [first for first, _ in pairs]
    ratio = torch.full((len(pairs),), math.exp(-1))
    torch.testing.assert_close(stats.top2 / stats.top1, ratio, rtol=1e-6, atol=0)


SPOILT = {
    "no possible id": lambda z: z.fill_(-torch.inf),
    "one NaN": lambda z: z[5000].fill_(torch.nan),
    "a NaN at the end": lambda z: z[-1].fill_(torch.nan),
    "all NaN": lambda z: z.fill_(torch.nan),
    "NaN among impossible ids": lambda z: z.fill_(-torch.inf)[3].fill_(torch.nan),
    "one infinite": lambda z: z[4096].fill_(torch.inf),
    "two infinite": lambda z: z[::8000].fill_(torch.inf),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spoil", SPOILT)
def test_a_row_without_a_distribution_is_nan_and_only_that_row(spoil, dtype):
    clean = random_logits(4, LONG).to(dtype)
    spoilt = clean.clone()
    SPOILT[spoil](spoilt[2])
    actual, expected = results(spoilt), results(clean)
    others = torch.tensor([0, 1, 3])
    assert all(value[2].isnan() for value in actual[:4])
    assert 0 <= actual[4][2] < LONG
    assert actual[5][2].isnan().all()
    assert_same_bits(tuple(a[others] for a in actual), tuple(e[others] for e in expected))


@pytest.mark.parametrize("place", [0, 31, 40, 4096, LONG - 1], ids="at {}".format)
def test_nan_is_not_hidden_wherever_it_stands(place):
    logits = random_logits(2, LONG)
    logits[1, place] = torch.nan
    assert results(logits)[0].isnan().tolist() == [False, True]
    suppressed = results(logits, suppressed_ids=torch.tensor([place]))
    assert not any(value.isnan().any() for value in suppressed)


# --- layouts ------------------------------------------------------------------------

WIDE = {
    "rows of a wider tensor": lambda z, wide: wide[:, 7 : 7 + LONG].copy_(z),
    "every other row": lambda z, wide: torch.cat((z, z * torch.nan), dim=1).view(-1, LONG)[::2],
    "one row, repeated": lambda z, wide: z[:1].expand_as(z),
    "transposed": lambda z, wide: z.T.contiguous().T,
    "every second element": lambda z, wide: torch.stack((z, z * torch.nan), dim=-1)[..., 0],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", WIDE)
def test_strided_logits_give_the_same_as_their_contiguous_copy(layout, dtype):
    # Around the rows there is NaN, which must not be read.
    wide = torch.full((3, LONG + 50), torch.nan, dtype=dtype)
    strided = WIDE[layout](random_logits(3, LONG).to(dtype), wide)
    assert not strided.is_contiguous()
    assert_same_bits(results(strided), results(strided.contiguous()))


@pytest.mark.parametrize("grad", [torch.tensor([2.0]).expand(6), torch.arange(12.0)[::2]])
def test_a_strided_output_gradient_gives_the_same_as_its_contiguous_copy(grad):
    logits = random_logits(6, 50)
    assert not grad.is_contiguous()
    _, actual = entropy_and_gradient(logits, grad, backend="native")
    _, expected = entropy_and_gradient(logits, grad.contiguous(), backend="native")
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("shape", [(0,), (2, 0)], ids=str)
def test_no_rows_give_empty_results(shape):
    *stats, gradient = results(torch.zeros(*shape, 5))
    assert all(value.shape == shape for value in stats)
    assert gradient.shape == (*shape, 5)


def test_rows_more_than_2_to_the_31_elements_apart_are_found():
    # Memory that nobody touches costs nothing.
    distance = 2**31 + 11
    logits = torch.empty(distance + 100, dtype=torch.bfloat16).as_strided((2, 100), (distance, 1))
    logits.copy_(random_logits(2, 100))
    assert_same_bits(results(logits), results(logits.contiguous()))


# --- determinism --------------------------------------------------------------------


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Rows are spread over the threads, or the blocks of few rows, or nothing at all.
@pytest.mark.parametrize(
    "shape", [(60, 5000), (1, 200_000), (3, 70_000), (5, 40_000), (2, 3)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_does_not_change_a_bit(shape, dtype, set_threads):
    logits, ids = (3 * random_logits(*shape)).to(dtype), torch.tensor([1])
    set_threads(1)
    expected = results(logits, suppressed_ids=ids)
    together = native.empty_stats(logits), torch.empty_like(logits)
    native.write_stats(together[0], logits, ids, together[1])
    for threads in (2, 3, 7):
        set_threads(threads)
        assert_same_bits(results(logits, suppressed_ids=ids), expected)
        stats, gradient = native.empty_stats(logits), torch.empty_like(logits)
        native.write_stats(stats, logits, ids, gradient)
        assert_same_bits((*stats, gradient), (*together[0], together[1]))


def test_a_row_gives_the_same_bits_alone_as_among_others(set_threads):
    set_threads(2)
    logits = random_logits(9, 70_000)
    together = results(logits)
    for row in (0, 4, 8):
        alone = results(logits[row : row + 1])
        assert_same_bits(alone, tuple(value[row : row + 1] for value in together))


def test_repeated_runs_give_the_same_bits(set_threads):
    set_threads(2)
    logits = random_logits(50, 5000)
    first = results(logits)
    for _ in range(5):
        assert_same_bits(results(logits), first)
