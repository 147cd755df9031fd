"""Vocabulary statistics by the Triton kernels, in every form that they take."""

from __future__ import annotations

import pytest
import torch
from error_bounds import FORWARD_FACTOR, assert_as_accurate
from test_entropy import (
    BAD_ROWS,
    assert_matches_categorical,
    distributions,
    entropy_and_gradient,
    random_logits,
)
from torch import Tensor

from boe_kernels import EntropyStats, entropy_stats
from boe_kernels.entropy import triton as kernels
from boe_kernels.entropy.triton import parameters
from boe_kernels.entropy.triton.parameters import MOST_LISTED, PARTS, RowCut, VocabularyLaunch

pytestmark = pytest.mark.usefixtures("poisoned_allocations", "interpreted")

DTYPES = (torch.float32, torch.float16)
# 8 threads, so that a tile has 128 ids and small vocabularies have several parts.
PARTS_OF_ROWS = VocabularyLaunch(warps=1, threads=8, whole_rows=1 << 30, gradient_loads=1)
WHOLE_ROWS = VocabularyLaunch(warps=1, threads=8, whole_rows=0, gradient_loads=1)
FORMS = {"parts of rows": PARTS_OF_ROWS, "whole rows": WHOLE_ROWS}
# 2 threads, so that a part has several tiles.
FINE = VocabularyLaunch(warps=1, threads=2, whole_rows=1 << 30, gradient_loads=1)
TILE = 4 * FINE.lanes


def launch_with(launch: VocabularyLaunch, monkeypatch: pytest.MonkeyPatch) -> None:
    for architecture in parameters.LAUNCH:
        monkeypatch.setitem(parameters.LAUNCH, architecture, launch)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row read by one program, or each of its parts."""
    launch_with(FORMS[request.param], monkeypatch)


@pytest.fixture
def parts_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of a row read by a program; reading whole rows gives the same bits."""
    launch_with(PARTS_OF_ROWS, monkeypatch)


@pytest.fixture
def several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 300 ids have 5 parts of 2 tiles each."""
    assert RowCut.of(VOCABULARY, FINE) == RowCut(part_tiles=2, parts=5)
    launch_with(FINE, monkeypatch)


def results(logits: Tensor, **options: object) -> tuple[Tensor, ...]:
    """The five statistics and the gradient."""
    stats, gradient = entropy_and_gradient(
        logits, torch.ones(logits.shape[:-1]), backend="triton", **options
    )
    return *(value.detach() for value in stats), gradient


def assert_same_bits(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert len(actual) == len(expected)
    for name, a, e in zip((*EntropyStats._fields, "gradient"), actual, expected, strict=False):
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True, msg=name)


# --- values and gradients -----------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", distributions())
@pytest.mark.usefixtures("parts_of_rows")
def test_flat_and_peaked_distributions_are_as_accurate_as_torch_distributions(distribution, dtype):
    assert_matches_categorical(distributions()[distribution].to(dtype), backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 63, 127, 128, 129, 1025], ids="V={}".format)
@pytest.mark.usefixtures("parts_of_rows")
def test_any_size_of_vocabulary_is_as_accurate_as_torch_distributions(size, dtype):
    assert_matches_categorical(random_logits(2, size, dtype=dtype), backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_committed_launch_parameters_are_as_accurate_as_torch_distributions(dtype):
    vocabulary = 9 * 4 * parameters.LAUNCH["sm_80"].lanes + 1
    logits = 3 * random_logits(2, vocabulary, dtype=torch.float64)
    assert_matches_categorical(logits.to(dtype), backend="triton")


@pytest.mark.parametrize(
    "ids",
    [[7], [0, 149, 7, 7], list(range(MOST_LISTED + 1)), [*range(100), 3, 149]],
    ids="{0[0]}…".format,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("parts_of_rows")
def test_suppressed_ids_have_probability_zero_and_no_gradient(dtype, ids):
    logits, ids = distributions()["peaked"].to(dtype), torch.tensor(ids)
    before = logits.clone()
    assert_matches_categorical(logits, suppressed_ids=ids, backend="triton")
    assert not results(logits, suppressed_ids=ids)[5][:, ids].any()
    assert torch.equal(logits, before), "the logits are not modified"


@pytest.mark.usefixtures("form")
def test_a_suppressed_id_that_equals_the_maximum_is_not_the_argmax():
    logits = torch.full((1, 200), 1.0)
    logits[0, [5, 6, 150]] = 9.0
    stats = entropy_stats(logits, suppressed_ids=torch.tensor([5]), backend="triton")
    assert stats.argmax.tolist() == [6]
    assert torch.equal(stats.top1, stats.top2)


def test_no_suppressed_ids_are_like_none():
    logits, none = random_logits(2, 150), torch.zeros(0, dtype=torch.int64)
    assert_same_bits(results(logits, suppressed_ids=none), results(logits))


# --- the top two --------------------------------------------------------------------

VOCABULARY = 300
# The same load, the same lane, neighbouring lanes, tiles and parts, and the two ends.
PAIRS = (
    (0, 3),
    (3, 3 + FINE.lanes),
    (4, 4 + 2 * FINE.lanes),
    (5 + 2 * FINE.lanes, 5 + 3 * FINE.lanes),
    (3, 3 + TILE),
    (TILE - 1, TILE),
    (2 * TILE - 1, 2 * TILE),
    (5, 5 + 2 * TILE),
    (0, 299),
)
PLACES = tuple(sorted({place for pair in PAIRS for place in pair}))


@pytest.mark.usefixtures("several_tiles")
def test_the_top_two_are_found_wherever_they_stand():
    pairs = [*PAIRS, *(pair[::-1] for pair in PAIRS)]
    logits = random_logits(len(pairs), VOCABULARY).clamp(-3, 3)
    for row, (first, second) in enumerate(pairs):
        logits[row, first], logits[row, second] = 5.0, 4.0
    stats = entropy_stats(logits, backend="triton")
    p = logits.double().softmax(dim=-1)
    firsts, seconds = torch.tensor(pairs).T
    assert torch.equal(stats.argmax, firsts)
    for name, place in (("top1", firsts), ("top2", seconds)):
        expected = p.gather(-1, place.unsqueeze(-1)).squeeze(-1)
        plain = logits.softmax(dim=-1).gather(-1, place.unsqueeze(-1)).squeeze(-1)
        assert_as_accurate(name, getattr(stats, name), expected, plain, FORWARD_FACTOR, 5.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("several_tiles")
def test_in_a_tie_the_lowest_id_wins_and_both_probabilities_are_equal(dtype):
    logits = random_logits(len(PAIRS), VOCABULARY).clamp(-3, 3).to(dtype)
    for row, pair in enumerate(PAIRS):
        logits[row, list(pair)] = 9.0
    stats = entropy_stats(logits, backend="triton")
    assert stats.argmax.tolist() == [low for low, _ in PAIRS]
    assert torch.equal(stats.top1, stats.top2)


def test_ids_that_all_tie_have_the_lowest_as_argmax():
    stats = entropy_stats(torch.full((2, VOCABULARY), 0.5), backend="triton")
    assert stats.argmax.tolist() == [0, 0]
    assert torch.equal(stats.top1, stats.top2)


# --- special rows -------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [*BAD_ROWS, "one infinite"])
@pytest.mark.usefixtures("form")
def test_a_row_without_a_distribution_is_nan_and_only_that_row(spoil):
    clean = random_logits(3, 300)
    spoilt = clean.clone()
    if spoil == "one infinite":
        spoilt[1, 200] = torch.inf
    else:
        BAD_ROWS[spoil](spoilt[1])
    actual, expected = results(spoilt), results(clean)
    others = torch.tensor([0, 2])
    for value in actual[:4]:
        assert value[1].isnan()
    assert 0 <= int(actual[4][1]) < 300, "meaningless, but an id"
    assert actual[5][1].isnan().any()
    assert_same_bits(tuple(x[others] for x in actual), tuple(x[others] for x in expected))


@pytest.mark.usefixtures("several_tiles")
def test_nan_is_not_hidden_wherever_it_stands():
    logits = random_logits(len(PLACES), VOCABULARY)
    logits[torch.arange(len(PLACES)), torch.tensor(PLACES)] = torch.nan
    for value in entropy_stats(logits, backend="triton")[:4]:
        assert value.isnan().all()


@pytest.mark.usefixtures("form")
def test_the_lowest_finite_number_is_a_logit_like_any_other():
    lowest = torch.finfo(torch.float32).min
    logits = torch.full((2, 300), -torch.inf)
    logits[0, [40, 290]] = lowest
    logits[1, 7], logits[1, 8] = lowest, 2.0
    stats = entropy_stats(logits, backend="triton")
    assert stats.argmax.tolist() == [40, 8]
    torch.testing.assert_close(stats.entropy, torch.tensor([2.0, 1.0]).log())
    assert stats.top2.tolist() == [0.5, 0.0]


# --- forms, layouts and determinism -------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_who_reads_the_parts_of_a_row_changes_no_bit(dtype, monkeypatch):
    logits, ids = random_logits(2, 1100, dtype=dtype), torch.tensor([3])
    logits[1, 700] = -torch.inf
    launch_with(PARTS_OF_ROWS, monkeypatch)
    parts = results(logits, suppressed_ids=ids)
    launch_with(WHOLE_ROWS, monkeypatch)
    assert_same_bits(results(logits, suppressed_ids=ids), parts)


def test_a_row_is_the_same_alone_as_in_a_batch_that_is_read_in_another_form(monkeypatch):
    logits = random_logits(3, 300)
    launch_with(VocabularyLaunch(1, 8, whole_rows=3, gradient_loads=1), monkeypatch)
    together = results(logits)
    for row in range(3):
        alone = results(logits[row : row + 1])
        assert_same_bits(alone, tuple(value[row : row + 1] for value in together))


@pytest.mark.parametrize("vocabulary", [1, 4096, 4097, 30522, 50257, 126464, 1 << 20])
@pytest.mark.parametrize("launch", parameters.LAUNCH.values(), ids=parameters.LAUNCH)
def test_the_parts_of_a_row_cover_it_and_none_is_empty(launch, vocabulary):
    cut = RowCut.of(vocabulary, launch)
    part = cut.part_tiles * 4 * launch.lanes
    assert (cut.parts - 1) * part < vocabulary <= cut.parts * part
    assert cut.parts <= PARTS


@pytest.mark.parametrize("suppressed", [None, torch.tensor([2]), torch.arange(9)], ids=str)
@pytest.mark.usefixtures("form")
def test_the_gradient_may_be_written_over_the_logits(suppressed):
    logits = random_logits(2, 150, dtype=torch.float16)
    stats, gradient = kernels.empty_stats(logits), logits.clone()
    kernels.write_stats(stats, gradient, suppressed, gradient)
    assert_same_bits((*stats, gradient), results(logits, suppressed_ids=suppressed))


LAYOUTS = {
    "transposed": lambda z: z.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every second row": lambda z: torch.stack((z, z + 1), dim=1)[:, 0],
    "part of a wider row": lambda z: torch.cat((z + 1, z, z - 1), dim=-1)[:, 150:300],
    "expanded": lambda z: z[:1].expand_as(z),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("parts_of_rows")
def test_strided_logits_give_the_same_as_their_contiguous_copy(layout):
    strided = LAYOUTS[layout](random_logits(3, 150))
    assert not strided.is_contiguous()
    assert_same_bits(results(strided), results(strided.contiguous()))


@pytest.mark.parametrize("grad", [torch.tensor([2.0]).expand(6), torch.arange(12.0)[::2]])
def test_a_strided_output_gradient_gives_the_same_as_its_contiguous_copy(grad):
    logits = random_logits(6, 150)
    assert not grad.is_contiguous()
    _, gradient = entropy_and_gradient(logits, grad, backend="triton")
    _, expected = entropy_and_gradient(logits, grad.contiguous(), backend="triton")
    assert torch.equal(gradient, expected)


@pytest.mark.usefixtures("form")
def test_no_rows_give_empty_results():
    *stats, gradient = results(torch.zeros(0, 5))
    assert all(value.shape == (0,) for value in stats)
    assert gradient.shape == (0, 5)


@pytest.mark.usefixtures("form")
def test_repeated_runs_give_the_same_bits():
    logits = random_logits(2, 300)
    first = results(logits)
    for _ in range(2):
        assert_same_bits(results(logits), first)


@pytest.mark.usefixtures("form")
def test_rows_further_apart_than_32_bits_can_count_are_found():
    # Two rows 4 GiB apart. The memory between them is never touched, so it costs nothing.
    stride = (1 << 31) + 16
    logits = torch.empty(stride + 150, dtype=torch.float16).as_strided((2, 150), (stride, 1))
    logits.copy_(random_logits(2, 150))
    assert_same_bits(results(logits), results(logits.clone()))
