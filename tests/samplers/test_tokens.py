"""What is written: temperature, nucleus, and which of them counts."""

from __future__ import annotations

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, table_of

from boe import FrontLoaded, Tokens, generate, sampler_from
from boe.decoding.draws import seeded
from boe.samplers.tokens import slot_seeds
from boe_kernels import observe_paths, sample_tokens

ROW = torch.tensor([5.0, 0.45, 0.3, 0.15, 0.1], dtype=torch.float64).log()  # id 0 is the mask


def counts(spec: str = "random", count: int = 8000, row: torch.Tensor = ROW, **options: object):
    denoiser = FakeDenoiser(row.expand(count, -1))
    canvas = torch.full((count,), MASK)
    result = generate(denoiser, canvas, spec, budget=FrontLoaded(1), seed=3, **options)
    return result.sequences[0].bincount(minlength=len(row)).double()


def chi_square(seen: torch.Tensor, p: torch.Tensor) -> float:
    expected = seen.sum() * p
    possible = expected > 0
    assert float(seen[~possible].sum()) == 0
    return float(((seen - expected) ** 2 / expected)[possible].sum())


def assert_drawn_from(nucleus: list[float], spec: str, top_p: float) -> None:
    p = torch.zeros(5, dtype=torch.float64)
    p[1 : 1 + len(nucleus)] = torch.tensor(nucleus, dtype=torch.float64) / sum(nucleus)
    assert chi_square(counts(spec, temperature=1.0, top_p=top_p), p) < 16.3  # 3 df, 0.1 %


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [
        (0.05, [0.45]),  # always the first
        (0.45, [0.45]),
        (0.74, [0.45]),  # 0.45 + 0.3 is more than that
        (0.76, [0.45, 0.3]),  # the cumulative probability is inclusive
        (0.91, [0.45, 0.3, 0.15]),
        (1.0, [0.45, 0.3, 0.15, 0.1]),
    ],
)
def test_the_nucleus_holds_the_first_and_all_within_the_inclusive_cumulative_probability(
    top_p: float, nucleus: list[float]
) -> None:
    assert_drawn_from(nucleus, "random", top_p)


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [
        (0.05, [0.45]),
        (0.44, [0.45]),
        (0.46, [0.45, 0.3]),
        (0.74, [0.45, 0.3]),
        (0.76, [0.45, 0.3, 0.15]),
        (0.91, [0.45, 0.3, 0.15, 0.1]),
    ],
)
def test_the_other_nucleus_is_the_fewest_tokens_that_reach_it_as_in_transformers(
    top_p: float, nucleus: list[float]
) -> None:
    assert_drawn_from(nucleus, "confidence+tokens:nucleus=reaching", top_p)


def test_the_nucleus_is_that_of_the_tempered_distribution() -> None:
    # At temperature 0.25 the first token has 0.83 of the whole: the nucleus of 0.9 is it alone.
    assert counts(temperature=0.25, top_p=0.9)[2:].sum() == 0
    assert counts(temperature=1.0, top_p=0.91)[3] > 0


def test_ties_at_the_edge_of_the_nucleus_go_to_the_lowest_id() -> None:
    row = torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25], dtype=torch.float64).log()
    seen = counts(row=row, temperature=1.0, top_p=0.6)
    assert (seen > 0).tolist() == [False, True, True, False, False]


def test_the_callers_temperature_goes_before_the_strategys_and_that_before_the_policys() -> None:
    greedy = [0.0, 8000.0, 0.0, 0.0, 0.0]
    assert counts("random").tolist() == greedy
    assert counts("random+tokens:temperature=1").tolist() != greedy
    assert counts("random+tokens:temperature=1", temperature=0.0).tolist() == greedy
    assert counts("maskgit").tolist() != greedy
    assert counts("maskgit+tokens:temperature=0").tolist() == greedy
    assert counts("maskgit+tokens:top_p=0.2").tolist() == greedy, "the policy's temperature, 1"
    assert counts("maskgit+tokens:top_p=0.2", top_p=1.0).tolist() != greedy


def test_confidence_is_untempered_and_untruncated() -> None:
    denoiser = FakeDenoiser(table_of([0.6, 0.5]))
    item = generate(
        denoiser,
        torch.full((2,), MASK),
        "confidence",
        temperature=0.5,
        top_p=0.5,
        trajectory=True,
    ).items[0]
    assert item.trajectory[0].scores.tolist() == pytest.approx([0.6, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be finite and not negative, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be finite and not negative, got nan"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p must be in \(0, 1\], got 0\.0"),
        ({"temperature": 1.0, "top_p": 1.1}, r"top_p must be in \(0, 1\], got 1\.1"),
        ({"top_p": 0.9}, r"top_p = 0\.9 has no effect at temperature 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counts(count=4, **options)


def test_tokens_are_checked_when_they_are_made() -> None:
    assert sampler_from("mdlm+tokens:top_p=0.9").tokens == Tokens(None, 0.9)
    with pytest.raises(ValueError, match="temperature must be finite"):
        Tokens(temperature=-0.5)


# --- draws ------------------------------------------------------------------------------


def generators(*keys: str) -> list[torch.Generator]:
    return [seeded(key, torch.device("cpu")) for key in keys]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tokens_are_those_that_the_op_draws_for_the_sequence_and_position(dtype) -> None:
    table = table_of([0.5, 0.4, 0.3, 0.3]).to(dtype)
    options = {"budget": FrontLoaded(1), "temperature": 0.8, "seed": 4, "item_ids": [7, 9]}
    canvases = [torch.full((4,), MASK), torch.tensor([1, MASK, 2, MASK])]
    drawn = generate(FakeDenoiser(table), canvases, "random", **options).sequences
    seeds = slot_seeds(torch.arange(4).expand(2, -1), generators("4/7/0/tokens", "4/9/0/tokens"))
    logits = table.index_fill(-1, torch.tensor([MASK]), -torch.inf).expand(2, -1, -1)
    expected = sample_tokens(logits, seeds, temperature=0.8).token
    assert torch.equal(drawn[0], expected[0])
    # What else is masked does not matter: positions 1 and 3 get the draws of 1 and 3.
    assert drawn[1].tolist() == [1, int(expected[1, 1]), 2, int(expected[1, 3])]


@pytest.mark.parametrize(("temperature", "op"), [(0.0, "entropy_stats"), (0.8, "sample_tokens")])
def test_a_step_reads_the_logits_once_for_statistics_and_draw(temperature: float, op: str) -> None:
    denoiser, canvas = FakeDenoiser(table_of([0.5, 0.4])), torch.full((2,), MASK)
    with observe_paths() as paths:
        generate(denoiser, canvas, budget=FrontLoaded(1), temperature=temperature)
    assert [name for name, _ in paths] == [op]


def test_seeds_differ_between_positions_and_sequences() -> None:
    seeds = slot_seeds(torch.arange(500).expand(4, -1), generators("a", "b", "c", "a"))
    assert len(set(seeds[:3].flatten().tolist())) == 3 * 500
    assert torch.equal(seeds[0], seeds[3])


def test_draws_at_neighbouring_positions_are_independent() -> None:
    row = torch.tensor([-torch.inf, 0.0, 0.0], dtype=torch.float64)
    denoiser = FakeDenoiser(row.expand(8000, -1))
    canvas = torch.full((8000,), MASK)
    ids = generate(denoiser, canvas, "random", budget=FrontLoaded(1), temperature=1.0).sequences[0]
    pairs = (ids[0::2] * 2 + ids[1::2] - 3).bincount(minlength=4).double()
    assert chi_square(pairs, torch.full((4,), 0.25, dtype=torch.float64)) < 16.3  # 3 df, 0.1 %


def test_steps_of_a_sequence_get_draws_of_their_own() -> None:
    table = torch.zeros(6, 50, dtype=torch.float64)
    options = {"temperature": 1.0, "seed": 0}
    at_once = generate(
        FakeDenoiser(table), torch.full((6,), MASK), "confidence", budget=FrontLoaded(1), **options
    ).sequences[0]
    # All positions tie, so they are revealed in order, each with the draw of its own step.
    one_by_one = generate(
        FakeDenoiser(table), torch.full((6,), MASK), "confidence", **options
    ).sequences[0]
    assert int(at_once[0]) == int(one_by_one[0])
    assert not torch.equal(at_once, one_by_one)


def test_temperatures_that_the_draw_cannot_tell_from_0_are_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature must be 0, .* or at least 1e-06, got 1e-09"):
        Tokens(1e-9)
