"""Entropy and companions of categorical distributions given by logits."""

from __future__ import annotations

import math

import pytest
import torch
from categorical_statistics import statistics_by_torch
from error_bounds import FORWARD_FACTOR, GRADIENT_FACTOR, assert_as_accurate, largest
from torch import Tensor

from boe_kernels import EntropyStats, entropy_stats
from boe_kernels.entropy import library

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

BACKENDS = ("library", "reference")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
VOCABULARY = 150


def random_logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def distributions() -> dict[str, Tensor]:
    """Logits (5, V) in float64 from flat to one-hot."""
    z = random_logits(5, VOCABULARY, dtype=torch.float64)
    some_impossible = z.masked_fill(torch.arange(VOCABULARY) % 3 == 0, -torch.inf)
    one_possible = torch.full_like(z, -torch.inf)
    one_possible[:, 11] = z[:, 11]
    peaked = z.clone()
    peaked[torch.arange(5), torch.tensor([0, 7, 70, 130, 149])] += 30
    return {
        "random": z,
        "flat": torch.full_like(z, 0.25),
        "nearly flat": z * 1e-3,
        "peaked": peaked,
        "scaled to 1e4": z * 1e4,
        "shifted by 1e4": z + 1e4,
        "some impossible": some_impossible,
        "one possible": one_possible,
    }


def entropy_and_gradient(
    logits: Tensor, grad: Tensor, **options: object
) -> tuple[EntropyStats, Tensor]:
    logits = logits.detach().requires_grad_()
    stats = entropy_stats(logits, **options)
    (gradient,) = torch.autograd.grad(stats.entropy, logits, grad)
    return stats, gradient


def assert_matches_categorical(logits: Tensor, **options: object) -> None:
    grad = (random_logits(*logits.shape[:-1], dtype=torch.float64) + 2).to(logits.device)
    stats, gradient = entropy_and_gradient(logits, grad, **options)
    actual = stats._asdict() | {"gradient": gradient}
    ids = options.get("suppressed_ids")

    def expected(dtype: torch.dtype) -> dict[str, Tensor]:
        leaf = logits.to(dtype).detach().requires_grad_()
        return statistics_by_torch(leaf, leaf, ids, grad)

    truth, plain = expected(torch.float64), expected(logits.dtype)
    # ln p, whose size the impossible ids do not count for.
    exponent = largest(logits.double().nan_to_num(neginf=0.0)) + math.log(logits.shape[-1])
    intermediates = {
        "entropy": exponent,
        "logsumexp": exponent,
        "top1": exponent,
        "top2": exponent,
        "gradient": exponent * largest(grad),
    }
    for name, intermediate in intermediates.items():
        factor = GRADIENT_FACTOR if name == "gradient" else FORWARD_FACTOR
        assert_as_accurate(
            name, actual[name].detach(), truth[name], plain[name], factor, intermediate
        )
    possible = logits if ids is None else logits.index_fill(-1, ids, -torch.inf)
    assert torch.equal(stats.argmax, possible.argmax(dim=-1))


# --- values and gradients -----------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", distributions())
def test_statistics_are_as_accurate_as_torch_distributions(distribution, dtype, backend):
    assert_matches_categorical(distributions()[distribution].to(dtype), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_suppressed_ids_have_probability_zero(dtype, backend):
    logits = distributions()["peaked"].to(dtype)
    before = logits.clone()
    assert_matches_categorical(logits, suppressed_ids=torch.tensor([0, 149, 7, 7]), backend=backend)
    assert torch.equal(logits, before), "the logits are not modified"


@pytest.mark.parametrize("backend", BACKENDS)
def test_suppressed_ids_get_no_gradient(backend):
    ids = torch.tensor([0, 149])
    _, gradient = entropy_and_gradient(
        random_logits(5, VOCABULARY), torch.ones(5), suppressed_ids=ids, backend=backend
    )
    assert not gradient[:, ids].any()
    assert gradient[:, 1:149].all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_suppressed_ids_are_like_none(backend):
    logits, none = random_logits(5, VOCABULARY), torch.zeros(0, dtype=torch.int64)
    actual = entropy_stats(logits, suppressed_ids=none, backend=backend)
    expected = entropy_stats(logits, backend=backend)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_ids_get_no_gradient(backend):
    logits = distributions()["some impossible"]
    _, gradient = entropy_and_gradient(logits, torch.ones(5), backend=backend)
    assert torch.equal(gradient != 0, logits > -torch.inf)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_is_minus_p_times_ln_p_plus_entropy(backend):
    logits = random_logits(5, VOCABULARY, dtype=torch.float64)
    grad = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0], dtype=torch.float64)
    stats, gradient = entropy_and_gradient(logits, grad, backend=backend)
    log_p = logits.log_softmax(dim=-1)
    expected = -grad[:, None] * log_p.exp() * (log_p + stats.entropy.detach()[:, None])
    assert_as_accurate("gradient", gradient, expected, expected, GRADIENT_FACTOR, largest(log_p))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("suppressed", [None, torch.tensor([4, 1])], ids=["all ids", "suppressed"])
def test_gradients_match_finite_differences(suppressed, backend):
    logits = random_logits(2, 3, 6, dtype=torch.float64)
    logits.requires_grad_()

    def entropy(z: Tensor) -> Tensor:
        return entropy_stats(z, suppressed_ids=suppressed, backend=backend).entropy

    assert torch.autograd.gradcheck(entropy, logits)


def test_the_reference_can_be_differentiated_twice():
    logits = random_logits(3, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda z: entropy_stats(z, backend="reference").entropy, logits
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_entropy_is_differentiable(backend):
    stats = entropy_stats(random_logits(5, 7).requires_grad_(), backend=backend)
    assert [value.requires_grad for value in stats] == [True, False, False, False, False]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_kept_in_float32_or_float64_and_gradients_in_the_logits_dtype(dtype, backend):
    stats, gradient = entropy_and_gradient(
        random_logits(5, 7, dtype=dtype), torch.ones(5), backend=backend
    )
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert [value.dtype for value in stats] == [kept] * 4 + [torch.int64]
    assert gradient.dtype == dtype


def test_the_entropy_does_not_change_when_a_constant_is_added_to_the_logits():
    logits = (random_logits(5, VOCABULARY) * 64).round() / 64
    shifted = logits + 4096.0
    assert torch.equal(shifted - 4096.0, logits), "the shift must be exact"
    actual, expected = entropy_stats(shifted), entropy_stats(logits)
    for name in ("entropy", "top1", "top2", "argmax"):
        assert torch.equal(getattr(actual, name), getattr(expected, name))


# --- special rows -------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_vocabulary_of_one_id_is_certain(backend):
    stats, gradient = entropy_and_gradient(
        torch.tensor([[3.0], [-5e3]]), torch.ones(2), backend=backend
    )
    assert stats.entropy.tolist() == [0.0, 0.0]
    assert stats.logsumexp.tolist() == [3.0, -5e3]
    assert stats.top1.tolist() == [1.0, 1.0]
    assert stats.top2.tolist() == [0.0, 0.0]
    assert stats.argmax.tolist() == [0, 0]
    assert not gradient.any()


# The library path finds the top two by way of chunks of 64 ids and a tail.
SIZES = (2, 3, 63, 64, 65, 127, 128, 129, 200)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES, ids="V={}".format)
def test_the_top_two_are_found_wherever_they_stand(size, backend):
    # One row per pair of places: the largest at `first`, the second largest at `second`.
    places = sorted({0, 1, size // 2, *(p for p in (62, 63, 64, 127, 128, size - 1) if p < size)})
    pairs = [(first, second) for first in places for second in places if first != second]
    logits = random_logits(len(pairs), size, dtype=torch.float64).clamp(-3, 3)
    for row, (first, second) in enumerate(pairs):
        logits[row, first], logits[row, second] = 5.0, 4.0
    stats = entropy_stats(logits, backend=backend)
    p = logits.softmax(dim=-1)
    firsts, seconds = torch.tensor(pairs).T
    assert torch.equal(stats.argmax, firsts)
    for name, place in (("top1", firsts), ("top2", seconds)):
        expected = p.gather(-1, place.unsqueeze(-1)).squeeze(-1)
        assert_as_accurate(name, getattr(stats, name), expected, expected, FORWARD_FACTOR, 5.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids="V={}".format)
def test_in_a_tie_the_lowest_id_wins_and_both_probabilities_are_equal(size, dtype, backend):
    places = sorted({0, 1, size // 2, *(p for p in (62, 63, 64, 127, 128, size - 1) if p < size)})
    pairs = [(low, high) for low in places for high in places if low < high]
    logits = random_logits(len(pairs), size).clamp(-3, 3).to(dtype)
    for row, pair in enumerate(pairs):
        logits[row, list(pair)] = 9.0
    stats = entropy_stats(logits, backend=backend)
    assert stats.argmax.tolist() == [low for low, _ in pairs]
    assert torch.equal(stats.top1, stats.top2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES, ids="V={}".format)
def test_nan_is_not_hidden_wherever_it_stands(size, backend):
    places = sorted({0, size // 2, *(p for p in (63, 64, 128, size - 1) if p < size)})
    logits = random_logits(len(places) + 1, size)
    for row, place in enumerate(places):
        logits[row, place] = torch.nan
    stats = entropy_stats(logits, backend=backend)
    for value in stats[:4]:
        assert value.isnan().tolist() == [True] * len(places) + [False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_flat_logits_have_the_entropy_of_the_uniform_distribution(backend):
    stats = entropy_stats(torch.full((2, 64), 0.5, dtype=torch.float64), backend=backend)
    expected = torch.full((2,), math.log(64), dtype=torch.float64)
    assert_as_accurate("entropy", stats.entropy, expected, expected, FORWARD_FACTOR)
    assert stats.argmax.tolist() == [0, 0]
    assert torch.equal(stats.top1, stats.top2)


BAD_ROWS = {
    "no possible id": lambda z: z.fill_(-torch.inf),
    "one NaN": lambda z: z[5].fill_(torch.nan),
    "all NaN": lambda z: z.fill_(torch.nan),
    "NaN among impossible ids": lambda z: z.fill_(-torch.inf)[3].fill_(torch.nan),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spoil", BAD_ROWS)
def test_a_row_without_a_distribution_is_nan_and_only_that_row(spoil, backend):
    clean = random_logits(4, VOCABULARY)
    spoilt = clean.clone()
    BAD_ROWS[spoil](spoilt[2])
    stats, gradient = entropy_and_gradient(spoilt, torch.ones(4), backend=backend)
    expected, expected_gradient = entropy_and_gradient(clean, torch.ones(4), backend=backend)
    others = torch.tensor([0, 1, 3])
    for name in ("entropy", "logsumexp", "top1", "top2"):
        assert getattr(stats, name)[2].isnan(), name
        assert torch.equal(getattr(stats, name)[others], getattr(expected, name)[others]), name
    assert gradient[2].isnan().any()
    assert torch.equal(gradient[others], expected_gradient[others])


@pytest.mark.parametrize("backend", BACKENDS)
def test_suppressing_every_id_leaves_no_distribution(backend):
    stats = entropy_stats(random_logits(2, 5), suppressed_ids=torch.arange(5), backend=backend)
    assert all(value.isnan().all() for value in stats[:4])


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_logit_gives_nan_and_not_a_number_that_looks_right(backend):
    logits = random_logits(3, 5)
    logits[1, 2] = torch.inf
    assert entropy_stats(logits, backend=backend).entropy.isnan().tolist() == [False, True, False]


# --- shapes and layouts -------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 1, 3), (3, 1, 2, 1)], ids=str)
def test_leading_dimensions_are_kept(shape, backend):
    logits = random_logits(*shape, VOCABULARY)
    stats, gradient = entropy_and_gradient(logits, torch.ones(shape), backend=backend)
    flat, flat_gradient = entropy_and_gradient(
        logits.reshape(-1, VOCABULARY), torch.ones(math.prod(shape)), backend=backend
    )
    for value, expected in zip(stats, flat, strict=True):
        assert value.shape == shape
        assert torch.equal(value.reshape(-1), expected)
    assert torch.equal(gradient.reshape(-1, VOCABULARY), flat_gradient)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)], ids=str)
def test_no_rows_give_empty_results(shape, backend):
    stats, gradient = entropy_and_gradient(
        torch.zeros(*shape, 5), torch.zeros(shape), backend=backend
    )
    assert all(value.shape == shape for value in stats)
    assert gradient.shape == (*shape, 5)


LAYOUTS = {
    "transposed": lambda z: z.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every second element": lambda z: torch.stack((z, z + 1), dim=-1)[..., 0],
    "leading dimensions swapped": lambda z: z.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded": lambda z: z[:1].expand_as(z),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_logits_give_the_same_as_their_contiguous_copy(layout, backend):
    strided = LAYOUTS[layout](random_logits(2, 3, VOCABULARY))
    assert not strided.is_contiguous()
    stats, gradient = entropy_and_gradient(strided, torch.ones(2, 3), backend=backend)
    expected, expected_gradient = entropy_and_gradient(
        strided.contiguous(), torch.ones(2, 3), backend=backend
    )
    assert all(torch.equal(a, e) for a, e in zip(stats, expected, strict=True))
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize("grad", [torch.tensor([2.0]).expand(6), torch.arange(12.0)[::2]])
def test_a_strided_output_gradient_gives_the_same_as_its_contiguous_copy(grad):
    logits = random_logits(6, VOCABULARY)
    assert not grad.is_contiguous()
    _, gradient = entropy_and_gradient(logits, grad)
    assert torch.equal(gradient, entropy_and_gradient(logits, grad.contiguous())[1])


@pytest.mark.parametrize("elements", [1, VOCABULARY, 3 * VOCABULARY], ids="{} elements".format)
def test_blocks_of_rows_give_the_same_as_all_rows_at_once(elements, monkeypatch):
    logits, ids = random_logits(10, VOCABULARY), torch.tensor([3])
    grad = random_logits(10)
    options = {"suppressed_ids": ids, "backend": "library"}
    whole, whole_gradient = entropy_and_gradient(logits, grad, **options)
    monkeypatch.setattr(library, "_CPU_BLOCK_ELEMENTS", elements)
    assert library.rows_per_block(logits) < 10
    blocks, gradient = entropy_and_gradient(logits, grad, **options)
    assert all(torch.equal(b, w) for b, w in zip(blocks, whole, strict=True))
    assert torch.equal(gradient, whole_gradient)


def test_repeated_runs_give_the_same_bits():
    logits, grad = random_logits(50, 1000), random_logits(50)
    first, first_gradient = entropy_and_gradient(logits, grad)
    for _ in range(5):
        stats, gradient = entropy_and_gradient(logits, grad)
        assert all(torch.equal(a, b) for a, b in zip(stats, first, strict=True))
        assert torch.equal(gradient, first_gradient)
