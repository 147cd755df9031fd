"""The vocabulary kernels on a GPU: statistics, their gradient, heads, draws of tokens."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from categorical_statistics import statistics_by_torch
from error_bounds import FORWARD_FACTOR, GRADIENT_FACTOR, assert_as_accurate, largest
from test_entropy import assert_matches_categorical, distributions
from torch import Tensor

from boe_kernels import entropy_stats, linear_entropy, observe_paths, sample_tokens

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LARGE = pytest.mark.device_only

SHAPES = [
    pytest.param((1, 1), id="1x1"),
    pytest.param((3, 127), id="3x127"),
    pytest.param((5, 1025), id="5x1025"),
    pytest.param((2, 3, 500), id="2x3x500"),
    pytest.param((700, 1000), id="700x1000", marks=LARGE),
    pytest.param((64, 50257), id="64x50257", marks=LARGE),
    pytest.param((7, 126464), id="7x126464", marks=LARGE),
    pytest.param((300, 151936), id="300x151936", marks=LARGE),
]


def logits_of(
    *shape: int, dtype: torch.dtype, device: torch.device, scale: float = 3.0, seed: int = 0
) -> Tensor:
    random = torch.Generator(device).manual_seed(seed)
    return (scale * torch.randn(shape, generator=random, device=device)).to(dtype)


# --- entropy_stats ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_and_gradient_are_as_accurate_as_torch_distributions(shape, dtype, device):
    logits = logits_of(*shape, dtype=dtype, device=device)
    with observe_paths() as seen:
        assert_matches_categorical(logits, backend="triton")
    assert {path for _, path in seen} == {"triton"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", distributions())
def test_flat_peaked_and_impossible_logits_are_right(distribution, dtype, device):
    logits = distributions()[distribution].to(device, dtype)
    assert_matches_categorical(logits, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 40, 700], ids="{} ids".format)
def test_suppressed_ids_have_probability_zero_and_no_gradient(count, dtype, device):
    logits = logits_of(5, 1025, dtype=dtype, device=device)
    order = torch.randperm(1025, generator=torch.Generator().manual_seed(count))
    ids = torch.cat((order[:count], order[:1])).to(device)
    before = logits.clone()
    assert_matches_categorical(logits, suppressed_ids=ids, backend="triton")
    leaf = logits.clone().requires_grad_()
    entropy = entropy_stats(leaf, suppressed_ids=ids, backend="triton").entropy
    (gradient,) = torch.autograd.grad(entropy.sum(), leaf)
    assert not gradient[:, ids].any()
    assert torch.equal(logits, before), "the logits are not modified"


@pytest.mark.sanitized
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_may_lie_apart_in_memory(dtype, device):
    apart = logits_of(6, 1100, dtype=dtype, device=device)
    apart[:, 1025:] = torch.nan
    rows = apart[::2, 1:1024]
    assert rows.data_ptr() % 16, "the first row is not where 16 bytes are read at once"
    assert_matches_categorical(rows, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_a_row_that_is_no_distribution_is_nan_and_leaves_the_others_alone(bad, dtype, device):
    logits = logits_of(4, 1025, dtype=dtype, device=device)
    expected = entropy_stats(logits, backend="triton").entropy
    logits[2, 1000] = bad
    actual = entropy_stats(logits, backend="triton").entropy
    assert actual[2].isnan()
    kept = [0, 1, 3]
    assert torch.equal(actual[kept], expected[kept])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_argmax_of_equal_logits_is_the_lowest_id(dtype, device):
    logits = logits_of(3, 5000, dtype=dtype, device=device)
    for row, ids in enumerate(([4999, 17], [4096, 4095], [0, 2500])):
        logits[row, ids] = 30.0
    stats = entropy_stats(logits, backend="triton")
    assert stats.argmax.tolist() == [17, 4095, 0]
    assert torch.equal(stats.top1, stats.top2)


# --- linear_entropy -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "block_rows"),
    [
        pytest.param(9, 1, id="blocks of 1"),
        pytest.param(9, 4, id="blocks of 4"),
        pytest.param(9, 100, id="blocks of 100"),
        # So many that a program reads a whole row and writes its gradient over it.
        pytest.param(700, 650, id="blocks of 650", marks=LARGE),
    ],
)
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_a_heads_statistics_and_gradient_are_right(with_bias, rows, block_rows, dtype, device):
    width, vocabulary = 32, 1027
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=random, dtype=torch.float64)
        return (drawn / math.sqrt(shape[-1])).to(device, dtype)

    hidden, weight, bias = 20 * draw(rows, width), draw(vocabulary, width), draw(vocabulary)
    constants = (weight, bias if with_bias else None)
    ids = torch.tensor([0, 1026], device=device)
    grad = torch.linspace(-1, 2, rows, dtype=torch.float64, device=device)
    leaf = hidden.clone().requires_grad_()
    options = {"suppressed_ids": ids, "block_elements": block_rows * vocabulary}
    stats = linear_entropy(leaf, *constants, **options, backend="triton")
    (gradient,) = torch.autograd.grad(stats.entropy, leaf, grad.to(stats.entropy.dtype))
    actual = stats._asdict() | {"gradient": gradient}

    def expected(dtype: torch.dtype) -> dict[str, Tensor]:
        leaf = hidden.to(dtype).requires_grad_()
        given = (x if x is None else x.to(dtype) for x in constants)
        return statistics_by_torch(leaf, F.linear(leaf, *given), ids, grad)

    truth, plain = expected(torch.float64), expected(dtype)
    size = largest(hidden.double().abs() @ weight.double().abs().T) + math.log(vocabulary)
    for name, right in truth.items():
        is_gradient = name == "gradient"
        assert_as_accurate(
            name,
            actual[name].detach(),
            right,
            plain[name],
            GRADIENT_FACTOR if is_gradient else FORWARD_FACTOR,
            size * largest(grad) * largest(weight) * size if is_gradient else size,
        )


# --- sample_tokens ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0], ids="T={}".format)
@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s.values[0]) == 2])
def test_the_tokens_drawn_are_those_of_the_reference(shape, temperature, dtype, device):
    logits = logits_of(*shape, dtype=dtype, device=device)
    random = torch.Generator(device).manual_seed(1)
    seeds = torch.randint(-(1 << 62), 1 << 62, shape[:1], generator=random, device=device)
    drawn = sample_tokens(logits, seeds, temperature=temperature, backend="triton")
    expected = sample_tokens(logits, seeds, temperature=temperature, backend="reference")
    assert torch.equal(drawn.token, expected.token)
    stats = entropy_stats(logits, backend="triton")
    assert torch.equal(drawn.stats.argmax, stats.argmax)


@pytest.mark.device_only
def test_the_frequencies_of_tokens_are_their_probabilities(device):
    count, vocabulary = 4000, 7
    row = logits_of(1, vocabulary, dtype=torch.float32, device=device, scale=1.0)
    seeds = torch.arange(count, device=device)
    tokens = sample_tokens(row.expand(count, -1), seeds, backend="triton").token
    p = row.double().softmax(dim=-1)[0]
    frequency = torch.bincount(tokens, minlength=vocabulary) / count
    deviations = (frequency - p).abs() / (p * (1 - p) / count).sqrt()
    # The seeds are fixed, so this cannot fail by chance on one day and not on another.
    assert float(deviations.max()) < 4
