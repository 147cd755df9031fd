"""Tokens drawn by the Gumbel maximum, each row by its own seed."""

from __future__ import annotations

import math

import pytest
import torch
from splitmix import mix, noise_bits, seed_that_gives, unmix
from torch import Tensor

from boe_kernels import EntropyStats, entropy_stats, sample_tokens
from boe_kernels.entropy import library as entropy_library
from boe_kernels.token_sampling import op
from boe_kernels.token_sampling.noise import gumbel_noise

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

BACKENDS = ("library", "reference")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ALL_ONES = (1 << 64) - 1


def logits_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(2).to(dtype)


# --- the noise ----------------------------------------------------------------------


def test_the_noise_is_that_of_splitmix64():
    assert unmix(mix(12345)) == 12345
    # The published first outputs of the generator started at 0.
    assert [noise_bits(0, token) for token in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]
    seeds = [0, 1, -1, 123456789, -(1 << 63), (1 << 63) - 1]
    noise = gumbel_noise(torch.tensor(seeds), 5)
    for row, seed in enumerate(seeds):
        for token in range(5):
            u = (noise_bits(seed, token) + 0.5) / 2**64
            # Python's float has 53 bits near 1, too few for more digits than these.
            assert float(noise[row, token]) == pytest.approx(-math.log(-math.log(u)), rel=1e-9)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (ALL_ONES, 65 * math.log(2)),
        (ALL_ONES - 1, math.log(2**65 / 3)),
        (ALL_ONES - (1 << 30), math.log(2**34)),
        (ALL_ONES >> 1, -math.log(math.log(2))),
        (0, -math.log(65 * math.log(2))),
    ],
)
def test_the_noise_keeps_both_tails(bits, expected):
    seed = seed_that_gives(bits, token=3)
    assert float(gumbel_noise(torch.tensor([seed]), 4)[0, 3]) == pytest.approx(expected, rel=1e-9)


def test_the_noise_has_a_gumbel_distribution():
    noise = gumbel_noise(torch.arange(200), 1000).flatten().sort().values
    empirical = (torch.arange(noise.numel()) + 0.5) / noise.numel()
    # Kolmogorov and Smirnov's distance is below this for all but one sample in a million.
    assert (torch.exp(-torch.exp(-noise)) - empirical).abs().max() < 2.7 / noise.numel() ** 0.5


def test_the_noise_of_neighbouring_ids_and_seeds_is_unrelated():
    noise = gumbel_noise(torch.arange(400), 500)
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
        correlation = torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]
        assert abs(float(correlation)) < 5 / a.numel() ** 0.5


# --- the draws ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_are_drawn_as_often_as_their_probabilities_say(temperature, backend):
    logits, draws = logits_of(6), 20_000
    token = sample_tokens(
        logits.expand(draws, 6), torch.arange(draws), temperature=temperature, backend=backend
    ).token
    counts = token.bincount(minlength=6).double()
    expected = (logits.double() / temperature).softmax(dim=-1) * draws
    # χ² of five degrees of freedom exceeds this once in a million.
    assert float(((counts - expected).square() / expected).sum()) < 35.9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_that_is_40_nats_behind_can_still_be_drawn(dtype, backend):
    # Noise of 24 bits ends at 17: with it no seed would draw this token.
    logits = torch.tensor([0.0, -40.0, -60.0], dtype=dtype)
    seed = torch.tensor(seed_that_gives(ALL_ONES, token=1))
    assert int(sample_tokens(logits, seed, backend=backend).token) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_low_temperature_draws_the_argmax(backend):
    logits = logits_of(50, 20)
    sample = sample_tokens(logits, torch.arange(50), temperature=1e-6, backend=backend)
    assert torch.equal(sample.token, logits.argmax(dim=-1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_and_suppressed_ids_are_never_drawn(backend):
    logits = logits_of(500, 7)
    logits[:, 2] = -torch.inf
    token = sample_tokens(
        logits,
        torch.arange(500),
        temperature=5.0,
        suppressed_ids=torch.tensor([0, 6]),
        backend=backend,
    ).token
    assert set(token.tolist()) == {1, 3, 4, 5}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_statistics_are_those_of_the_untempered_distribution(dtype, backend):
    logits, ids = logits_of(4, 30, dtype=dtype), torch.tensor([3])
    sample = sample_tokens(
        logits, torch.arange(4), temperature=0.5, suppressed_ids=ids, backend=backend
    )
    expected = entropy_stats(logits, suppressed_ids=ids, backend=backend)
    for name, value, right in zip(EntropyStats._fields, sample.stats, expected, strict=True):
        assert torch.equal(value, right), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_path_draws_the_same_tokens(dtype):
    logits, seeds = logits_of(300, 40, dtype=dtype), torch.arange(300)
    library, reference = (sample_tokens(logits, seeds, backend=b).token for b in BACKENDS)
    assert torch.equal(library, reference)


def test_blocks_of_rows_draw_the_same_as_all_rows_at_once(monkeypatch):
    logits, seeds = logits_of(30, 40), torch.arange(30)
    whole = sample_tokens(logits, seeds, backend="library").token
    monkeypatch.setattr(entropy_library, "_CPU_BLOCK_ELEMENTS", 40 * 16 * 4)
    assert torch.equal(sample_tokens(logits, seeds, backend="library").token, whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rows_draw_depends_on_its_own_seed_and_logits_only(backend):
    logits, seeds = logits_of(40, 30), torch.arange(40)
    together = sample_tokens(logits, seeds, backend=backend).token
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = sample_tokens(logits[order], seeds[order], backend=backend).token
    assert torch.equal(shuffled, together[order])
    assert len(set(sample_tokens(logits[:1].expand(40, -1), seeds).token.tolist())) > 5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0)], ids=str)
def test_leading_dimensions_are_kept(shape, backend):
    seeds = torch.arange(math.prod(shape)).reshape(shape)
    sample = sample_tokens(logits_of(*shape, 9), seeds, backend=backend)
    assert sample.token.shape == shape
    assert sample.token.dtype == torch.int64
    assert all(value.shape == shape for value in sample.stats)


# --- arguments and registration -----------------------------------------------------

LOGITS, SEEDS = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([0.0], SEEDS), {}, TypeError, "logits must be a tensor, got list"),
        ((LOGITS.long(), SEEDS), {}, TypeError, r"logits must be float64.*, got torch\.int64"),
        ((torch.zeros(2, 0), SEEDS), {}, ValueError, r"vocabulary dimension.*got \(2, 0\)"),
        ((LOGITS, 0), {}, TypeError, "seeds must be a tensor, got int"),
        ((LOGITS, SEEDS.int()), {}, TypeError, r"seeds must be int64, got torch\.int32"),
        ((LOGITS, SEEDS[:1]), {}, ValueError, r"seeds must have shape .*\(2,\), got \(1,\)"),
        ((LOGITS, SEEDS), {"temperature": 0.0}, ValueError, "temperature must be finite and .* 0"),
        ((LOGITS, SEEDS), {"temperature": math.nan}, ValueError, "temperature .*got nan"),
        ((LOGITS, SEEDS), {"temperature": math.inf}, ValueError, "temperature .*got inf"),
        ((LOGITS, SEEDS), {"suppressed_ids": SEEDS + 3}, IndexError, r"ids in \[0, 3\)"),
    ],
)
def test_a_wrong_argument_is_refused_and_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        sample_tokens(*arguments, **options)


def test_the_operator_passes_opcheck():
    arguments = (logits_of(5, 7), torch.arange(5), 0.7, torch.tensor([1]), "library")
    torch.library.opcheck(op.forward_op.op, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_draws_statistics_do_not_claim_to_have_a_gradient(backend):
    sample = sample_tokens(LOGITS.clone().requires_grad_(), SEEDS, backend=backend)
    assert not any(value.requires_grad for value in sample.stats)


def test_compiled_and_eager_draws_are_the_same(fresh_compiler):
    compiled = torch.compile(sample_tokens, fullgraph=True, backend="aot_eager")
    logits, seeds = logits_of(5, 7), torch.arange(5)
    assert torch.equal(compiled(logits, seeds).token, sample_tokens(logits, seeds).token)
