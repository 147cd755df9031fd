"""The decoding loop: what it reveals, what it writes, what it charges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, table_of
from tiny_models import MASK_ID, random_words, tiny_denoiser
from torch import Tensor

from boe import (
    BoE,
    Confidence,
    Cosine,
    FrontLoaded,
    Random,
    Strategy,
    TokensPerStep,
    defaults,
    generate,
    sampler_from,
)
from boe.canvas import Canvas
from boe.samplers import Deadline, Entropy, Move, OverlapBound, Policy, Sampler, Scores, Step
from boe.samplers.base import Count
from boe.samplers.budgets import Budget

CONFIDENCES = [0.9, 0.3, 0.8, 0.4, 0.7, 0.5, 0.6, 0.35, 0.85, 0.45]


def blank(length: int) -> Tensor:
    return torch.full((length,), MASK)


def fake(length: int = 10, **options: object) -> FakeDenoiser:
    return FakeDenoiser(table_of(CONFIDENCES[:length]), **options)


def revealed(generation, item: int = 0) -> list[list[int]]:
    return [record.revealed.tolist() for record in generation.items[item].trajectory]


# --- what is revealed, and what is written --------------------------------------------


def test_confidence_reveals_the_surest_first_and_writes_its_argmax() -> None:
    result = generate(fake(), blank(10), "confidence", trajectory=True)
    assert revealed(result) == [[0], [8], [2], [4], [6], [5], [9], [3], [7], [1]]
    assert result.sequences[0].tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]


def test_without_a_sampler_nearly_certain_tokens_go_at_once_and_no_gradient_is_taken() -> None:
    confidences = [0.995, 0.5, 0.6, 0.999, 0.55, 0.7]
    denoiser = FakeDenoiser(table_of(confidences))
    canvas = torch.full((6,), MASK)

    def steps(tokens: int) -> list[list[int]]:
        item = generate(denoiser, canvas, budget=TokensPerStep(tokens), trajectory=True).items[0]
        assert item.account.n_backward == 0
        return [record.revealed.tolist() for record in item.trajectory]

    # One token a step: the surest first, two of them together.
    assert steps(1) == [[0, 3], [5], [2], [4], [1]]
    # Three a step: the third fills the first step up, and three are left for the second.
    assert steps(3) == [[0, 3, 5], [1, 2, 4]]
    assert sampler_from(defaults.SAMPLER) == Strategy(
        Entropy(), OverlapBound(floor=0.99, fill="cost"), deadline=Deadline()
    )


def test_several_tokens_a_step_follow_the_budget() -> None:
    result = generate(fake(), blank(10), "confidence", budget=TokensPerStep(4), trajectory=True)
    assert revealed(result) == [[0, 2, 4, 8], [3, 5, 6, 9], [1, 7]]
    assert result.total.steps == 3


def test_observed_tokens_never_change_and_any_pattern_of_masks_is_filled() -> None:
    canvas = torch.tensor([5, MASK, 4, MASK, MASK, 3, 2, 1, MASK, 5])
    given = canvas.clone()
    result = generate(fake(), canvas, "confidence", trajectory=True)
    assert torch.equal(canvas, given), "the caller's canvas is left alone"
    assert result.sequences[0].tolist() == [5, 2, 4, 4, 5, 3, 2, 1, 4, 5]
    assert revealed(result) == [[8], [4], [3], [1]]


@pytest.mark.parametrize("sampler", ["random", "boe", "boe:alpha=0", "margin", "entropy"])
def test_written_tokens_never_change(sampler: str) -> None:
    denoiser = tiny_denoiser("bert", 1)
    seen: list[Tensor] = []
    canvas = random_words(14, [0, 1, 4, 6, 7, 9, 12])
    generate(
        denoiser,
        canvas,
        sampler,
        budget=TokensPerStep(2),
        temperature=1.0,
        on_step=lambda number, item: seen.append(item.ids.clone()),
    )
    previous = canvas
    for now in seen:
        known = previous != MASK_ID
        assert torch.equal(now[known], previous[known])
        previous = now
    assert MASK_ID not in previous.tolist()
    assert [int((s == MASK_ID).sum()) for s in seen] == [5, 3, 1, 0]


def test_ties_go_to_the_lowest_position_and_the_lowest_id() -> None:
    flat = FakeDenoiser(torch.zeros(6, 5, dtype=torch.float64))
    for sampler in (
        *("confidence", "margin", "entropy", "boe", "lookahead"),
        *("eb:gamma=0", "threshold:value=0.9", "klass:confidence=0.9"),
        "factor:factor=0.1",
        "pc:frequencies=uniform,decay=0",
        "p2:steps=3+tokens:temperature=0",
        "lookum:pool_temperature=0",
    ):
        result = generate(flat, blank(6), sampler, budget=TokensPerStep(2), trajectory=True)
        assert revealed(result) == [[0, 1], [2, 3], [4, 5]]
        assert result.sequences[0].tolist() == [1] * 6


# --- blocks ---------------------------------------------------------------------------


def test_nothing_outside_the_current_block_is_revealed_early() -> None:
    result = generate(fake(), blank(10), "confidence", block_length=4, trajectory=True)
    assert revealed(result) == [[0], [2], [3], [1], [4], [6], [5], [7], [8], [9]]


def test_blocks_start_at_the_first_mask() -> None:
    canvas = blank(10)
    canvas[:3] = 1
    result = generate(
        fake(), canvas, "confidence", block_length=3, budget=TokensPerStep(2), trajectory=True
    )
    assert revealed(result) == [[4, 5], [3], [6, 8], [7], [9]]


def test_a_block_without_masks_takes_no_step() -> None:
    canvas = torch.tensor([MASK, 1, 1, 1, 1, 1, MASK, MASK, 1, 1])
    result = generate(fake(), canvas, "confidence", block_length=2, trajectory=True)
    assert revealed(result) == [[0], [6], [7]]


@pytest.mark.parametrize("sampler", ["boe", "boe:preset=paper", "random"])
def test_every_sampler_keeps_to_the_block(sampler: str) -> None:
    denoiser = tiny_denoiser("bert", 1)
    canvas = random_words(15, list(range(2, 15)))
    result = generate(
        denoiser, canvas, sampler, block_length=5, budget=FrontLoaded(7), trajectory=True
    )
    filled: list[int] = []
    for step in revealed(result):
        end = 2 + 5 * (len(filled) // 5 + 1)
        assert max(step) < end
        filled += step
    assert sorted(filled) == list(range(2, 15))


def test_steps_are_shared_between_blocks() -> None:
    result = generate(fake(), blank(10), "confidence", block_length=5, budget=FrontLoaded(4))
    assert result.total.steps == 4
    result = generate(fake(), blank(10), "confidence", budget=Cosine(4), trajectory=True)
    assert [len(step) for step in revealed(result)] == list(Cosine(4).plan(10))


# --- the account ----------------------------------------------------------------------


def test_a_greedy_sampler_costs_one_forward_a_step() -> None:
    result = generate(fake(), [blank(10), blank(3)], "confidence", budget=TokensPerStep(2))
    first, second = (item.account for item in result.items)
    assert (first.steps, first.nfe_forward, first.n_backward, first.flop_equiv) == (5, 5, 0, 5)
    assert (second.steps, second.nfe_forward, second.n_backward, second.flop_equiv) == (2, 2, 0, 2)
    assert result.total.steps == 7
    assert first.seconds > 0


def test_boe_is_charged_for_the_rows_of_each_canvas_and_not_for_a_forced_step() -> None:
    denoiser = fake(influence=torch.zeros(10))
    sampler = BoE(tolerance=None, rho=0.5)  # A = C ∪ S: all masked rows, forward and backward
    word = torch.ones(4, dtype=torch.int64)
    canvas = [torch.cat([word, blank(6)]), torch.cat([blank(3), word[:2]])]
    result = generate(denoiser, canvas, sampler)
    first, second = (item.account for item in result.items)
    # With two masks left one candidate competes, with one none: neither costs a backward.
    assert (first.steps, first.nfe_forward, first.n_backward) == (6, 6, 4)
    assert first.flop_equiv == pytest.approx(6 + 2 * (6 + 5 + 4 + 3) / 10)
    assert (second.steps, second.nfe_forward, second.n_backward) == (3, 3, 1)
    assert second.flop_equiv == pytest.approx(3 + 2 * 3 / 5)


def test_steps_without_a_choice_keep_nothing_for_a_gradient() -> None:
    denoiser = fake()
    generate(denoiser, blank(4), BoE(tolerance=None, rho=0.5))
    # Of two masks one is a candidate, and the last step is forced.
    assert denoiser.keeps == ["keys_values"] * 2 + ["nothing"] * 2
    assert len(denoiser.requests) == 2


def test_a_step_that_is_forced_in_one_canvas_only_costs_that_canvas_no_backward() -> None:
    denoiser = fake()
    result = generate(
        denoiser, [blank(6), blank(2)], BoE(tolerance=None, rho=0.5), budget=TokensPerStep(2)
    )
    assert [item.account.n_backward for item in result.items] == [1, 0]
    assert result.items[1].account.flop_equiv == 1.0
    assert bool((denoiser.requests[0].candidates[1] == -1).all())


def test_second_forwards_are_charged_to_the_canvases_that_steer() -> None:
    denoiser = fake(forwards=1)
    sampler = BoE(tolerance=None, rho=0.5, context="full")
    result = generate(denoiser, [blank(5), blank(1)], sampler)
    first, second = (item.account for item in result.items)
    assert (first.nfe_forward, first.n_backward) == (5 + 3, 3)
    assert (second.nfe_forward, second.n_backward, second.flop_equiv) == (1, 0, 1)


@pytest.mark.parametrize(
    ("options", "forwards", "backwards", "rows"),
    [
        # 4 masks of 10 and ρ = 1/2: two candidates compete at 4 and at 3 masks, then none.
        ({}, 4, 2, 2 * (4 + 3)),
        ({"active": "all"}, 4, 2, 2 * 2 * 10),
        ({"context": "full"}, 6, 2, 2 * (4 + 3)),
        ({"active": "candidates", "probes": "masked", "alpha": 0.0}, 4, 2, 2 * (2 + 2)),
        ({"alpha": 0.0, "engine": "late"}, 4, 2, 2 * 10),
        ({"alpha": 0.0, "engine": "dense"}, 4, 2, 2 * 10),
        ({"probes": "masked_minus_self"}, 4, 4, 2 * (4 + 2 + 3 + 2)),
        # ⌈6/2⌉ bridges beside 4 masks, ⌈7/2⌉ beside 3.
        ({"active": "bridges", "bridges": 0.5}, 4, 2, 2 * (7 + 7)),
        (
            {"active": "bridges", "bridges": 0.5, "bridge_rule": "hidden_change"},
            6,
            2,
            2 * (7 + 7),
        ),
    ],
)
def test_a_real_model_is_charged_what_was_counted_by_hand(
    options: dict, forwards: int, backwards: int, rows: int
) -> None:
    canvas = random_words(10, [1, 4, 5, 8])
    sampler = BoE(tolerance=None, rho=0.5, **options)
    account = generate(tiny_denoiser("bert", 2), canvas, sampler).total
    assert (account.steps, account.nfe_forward) == (4, forwards)
    assert account.n_backward == backwards
    assert account.flop_equiv == pytest.approx(forwards + rows / 10)


# --- temperature and randomness -------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_tempered_softmax(temperature: float) -> None:
    row = torch.tensor([9.0, 1.0, 0.0, -1.0, 2.0], dtype=torch.float64)  # the mask is never drawn
    denoiser = FakeDenoiser(row.expand(20_000, -1))
    result = generate(
        denoiser, blank(20_000), "random", budget=FrontLoaded(1), temperature=temperature, seed=3
    )
    counts = result.sequences[0].bincount(minlength=5)
    assert int(counts[MASK]) == 0
    expected = 20_000 * (row[1:] / temperature).softmax(0)
    chi_square = float(((counts[1:] - expected) ** 2 / expected).sum())
    assert chi_square < 16.3  # 3 degrees of freedom: 0.1 % of seeds would fail


def test_temperature_0_is_greedy_whatever_the_seed() -> None:
    results = [generate(fake(), blank(10), "margin", seed=seed) for seed in (0, 1)]
    assert torch.equal(results[0].sequences[0], results[1].sequences[0])


def draw(item_ids: list[int] | None = None, seed: int = 0, **options: object):
    canvases = [blank(10), blank(6), blank(8), blank(10)]
    if item_ids is not None:
        canvases = [canvases[k % 4] for k in item_ids]
    return generate(
        fake(), canvases, "random", temperature=1.0, seed=seed, item_ids=item_ids, **options
    )


def test_equal_seeds_give_equal_draws_and_other_seeds_others() -> None:
    first, again, other = draw(), draw(), draw(seed=1)
    for a, b in zip(first.sequences, again.sequences, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.sequences[0], other.sequences[0])
    assert not torch.equal(first.sequences[0], first.sequences[3]), "items differ from each other"


def test_permuting_the_batch_permutes_the_results() -> None:
    straight = draw([0, 1, 2, 3])
    turned = draw([2, 0, 3, 1])
    for place, item in enumerate([2, 0, 3, 1]):
        assert torch.equal(turned.sequences[place], straight.sequences[item])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 9])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    for a, b in zip(draw().sequences, draw(batch_size=batch_size).sequences, strict=True):
        assert torch.equal(a, b)


def test_the_order_and_the_tokens_are_drawn_independently() -> None:
    # Random's order must be the same whether tokens are drawn or not.
    orders = [
        revealed(generate(fake(), blank(10), "random", temperature=t, trajectory=True, seed=5))
        for t in (0.0, 1.0)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize(
    "sampler",
    [
        BoE(tolerance=None, rho=0.5),
        BoE(alpha=0.0, tolerance=None, rho=0.5),
        BoE(tolerance=None, rho=0.5, active="bridges", bridge_rule="random", candidates="random"),
        BoE(tolerance=None, rho=0.5, active="bridges", context="full"),
        BoE.preset("paper", rho=0.6),
        Random(),
    ],
    ids=("default", "alpha0", "random-bridges", "bridges-full", "paper", "random"),
)
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_a_sequence_decodes_alone_as_it_does_in_a_padded_batch(name: str, sampler) -> None:
    denoiser = tiny_denoiser(name)
    canvases = [
        random_words(17, [0, 2, 3, 6, 8, 11, 15, 16], seed=1),
        random_words(9, [1, 2, 5, 7, 8], seed=2),
        random_words(21, [4, 5, 20], seed=3),
    ]
    options = {"budget": TokensPerStep(2), "temperature": 1.0, "seed": 7, "trajectory": True}
    together = generate(denoiser, canvases, sampler, item_ids=[10, 11, 12], **options)
    assert (together.total.n_backward > 0) == isinstance(sampler, BoE)
    for k, canvas in enumerate(canvases):
        alone = generate(denoiser, canvas, sampler, item_ids=[10 + k], **options).items[0]
        ours = together.items[k]
        assert torch.equal(ours.ids, alone.ids)
        for a, b in zip(ours.trajectory, alone.trajectory, strict=True):
            assert torch.equal(a.positions, b.positions)
            assert torch.equal(a.revealed, b.revealed)
            assert torch.equal(a.tokens, b.tokens)
            if len(a.positions) > 2:
                torch.testing.assert_close(a.scores, b.scores, rtol=1e-6, atol=1e-9)
        assert ours.account.flop_equiv == pytest.approx(alone.account.flop_equiv)
        assert ours.account.n_backward == alone.account.n_backward


@pytest.mark.parametrize("sampler", ["random", "margin", "boe:tolerance=none,rho=0.5"])
def test_the_record_of_a_forced_step_does_not_depend_on_the_rest_of_the_batch(
    sampler: str,
) -> None:
    # The second canvas has one mask: its only step is forced, the first one's is not.
    together = generate(fake(), [blank(6), blank(1)], sampler, trajectory=True)
    alone = generate(fake(), blank(1), sampler, item_ids=[1], trajectory=True)
    ours, expected = together.items[1].trajectory[0], alone.items[0].trajectory[0]
    assert ours.scores.tolist() == expected.scores.tolist()
    assert ours.parts.keys() == expected.parts.keys()


# --- records --------------------------------------------------------------------------


def test_the_trajectory_holds_what_each_step_saw_and_did() -> None:
    denoiser = fake(influence=torch.arange(10.0).double())
    canvas = torch.tensor([MASK, 1, MASK, MASK, 1, MASK])
    item = generate(denoiser, canvas, BoE(tolerance=None, rho=0.5), trajectory=True).items[0]
    first = item.trajectory[0]
    assert [r.positions.tolist() for r in item.trajectory[:2]] == [[0, 2, 3, 5], [0, 3, 5]]
    # Confidences .9, .8, .4, .5: candidates 0 and 2, of which 2 has more influence.
    assert first.parts["candidate"].tolist() == [True, True, False, False]
    assert first.parts["probe"].tolist() == [False, False, True, True]
    assert first.parts["tis"].tolist() == [0.0, 2.0, 0.0, 0.0]
    assert first.scores.tolist() == [0.0, 2.0, -torch.inf, -torch.inf]
    assert first.revealed.tolist() == [2]
    assert first.tokens.tolist() == [3]
    p = torch.tensor([0.9] + [0.025] * 4).double()
    assert float(first.entropy[0]) == pytest.approx(float(-(p * p.log()).sum()))
    assert set(first.parts) == {"tis", "candidate", "probe", "gate", "penalty"}
    filled = {int(r.revealed): int(r.tokens) for r in item.trajectory}
    assert [filled.get(k, int(canvas[k])) for k in range(6)] == item.ids.tolist()


def test_without_asking_there_is_no_trajectory() -> None:
    assert generate(fake(), blank(3), "confidence").items[0].trajectory is None


def test_on_step_sees_every_sequence_after_every_step_by_its_number() -> None:
    seen: list[tuple[int, int]] = []
    generate(
        fake(),
        [blank(3), blank(1), blank(2)],
        "confidence",
        batch_size=2,
        item_ids=[7, 8, 9],
        on_step=lambda number, item: seen.append((number, int((item.ids == MASK).sum()))),
    )
    assert seen == [(0, 2), (1, 0), (0, 1), (0, 0), (2, 1), (2, 0)]


def test_a_sequence_without_masks_passes_through_unchanged() -> None:
    whole = torch.tensor([1, 2, 3])
    result = generate(fake(), [blank(3), whole], "confidence")
    assert result.sequences[1].tolist() == [1, 2, 3]
    assert result.items[1].account.steps == 0


def test_finished_sequences_leave_the_batch_and_are_cut_to_the_longest_left() -> None:
    denoiser = fake()
    generate(denoiser, [torch.cat([torch.ones(9).long(), blank(1)]), blank(4)], "confidence")
    assert [tuple(c.ids.shape) for c in denoiser.canvases] == [(2, 10), (1, 4), (1, 4), (1, 4)]


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("canvas", "error", "message"),
    [
        (torch.tensor([1, 2]), ValueError, r"no mask token \(id 0\): nothing to decode"),
        (torch.tensor([MASK, 6]), ValueError, r"ids in \[0, 6\), got 6"),
        (torch.tensor([MASK, -1]), ValueError, r"ids in \[0, 6\), got -1"),
        ([blank(2), torch.empty(0).long()], ValueError, "sequence 1 of the canvas is empty"),
        ([], ValueError, "at least one sequence, got none"),
        (torch.zeros(3), TypeError, r"int64 token ids, got torch\.float32"),
        (torch.zeros(3, dtype=torch.int32), TypeError, r"int64 token ids, got torch\.int32"),
        (torch.zeros(2, 2, 2).long(), ValueError, r"shape \(L,\) or \(B, L\), got \(2, 2, 2\)"),
        (
            Canvas(torch.zeros(1, 3, dtype=torch.int64, device="meta"), (3,)),
            ValueError,
            "on the model's device cpu, got meta",
        ),
    ],
)
def test_canvases_that_cannot_be_decoded_are_refused_with_the_reason(
    canvas, error, message: str
) -> None:
    with pytest.raises(error, match=message):
        generate(fake(), canvas, "confidence")


@pytest.mark.parametrize(
    ("ids", "lengths", "error", "message"),
    [
        (torch.zeros(1, 3), (3,), TypeError, "int64 token ids, got torch.float32"),
        (torch.zeros(3).long(), (3,), ValueError, r"shape \(B, L\) and B lengths"),
        (torch.zeros(1, 3).long(), (3, 3), ValueError, r"got \(1, 3\) and 2"),
        (torch.zeros(1, 3).long(), (4,), ValueError, r"lengths in \[1, 3\], got \(4,\)"),
        (torch.zeros(1, 3).long(), (0,), ValueError, r"lengths in \[1, 3\], got \(0,\)"),
    ],
)
def test_canvases_made_by_hand_are_looked_at_too(ids, lengths, error, message: str) -> None:
    with pytest.raises(error, match=message):
        generate(fake(), Canvas(ids, lengths), "confidence")


def test_a_tensor_of_item_ids_fixes_the_draws_as_numbers_do() -> None:
    canvas = [blank(6)] * 3
    options = {"temperature": 1.0, "seed": 4}
    drawn = [
        generate(fake(), canvas, "random", item_ids=keys, **options).sequences
        for keys in ([7, 8, 9], torch.tensor([7, 8, 9]))
    ]
    assert torch.equal(torch.stack(drawn[0]), torch.stack(drawn[1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be finite and not negative, got -0\.1"),
        ({"temperature": float("nan")}, "temperature must"),
        ({"block_length": 0}, "block_length must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"item_ids": [1, 2]}, "item_ids must number 1 sequences, got 2"),
        ({"sampler": "best"}, "sampler must be one of random, confidence.*got 'best'"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(fake(), blank(3), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": 3}, "sampler must be a specification text, a policy or a strategy, got int"),
        ({"budget": 3}, r"budget must be a Budget such as TokensPerStep\(3\), got int"),
        ({"block_length": 2.5}, r"block_length must be a whole number, got 2\.5"),
        ({"batch_size": "2"}, "batch_size must be a whole number, got '2'"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"item_ids": 5}, "item_ids must hold whole numbers or texts, got 5"),
        ({"item_ids": [0.5]}, r"item_ids must hold whole numbers or texts, got \[0\.5\]"),
        ({"temperature": "0.5"}, r"temperature must be a number, got '0\.5'"),
        ({"guidance": "1"}, "guidance must be a number, got '1'"),
        ({"suppress": 5}, "suppress must hold token ids, got 5"),
        ({"delay": ["cat"]}, r"delay must hold token ids, got \['cat'\]"),
        ({"stop": [3]}, "stop must hold patterns, sequences of token ids, got 3"),
    ],
)
def test_options_of_another_type_are_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        generate(fake(), blank(3), **{"sampler": "confidence", **options})


def test_ids_may_come_as_a_tensor() -> None:
    (written,) = generate(fake(), blank(3), "confidence", suppress=torch.tensor([2, 3])).sequences
    assert not set(written.tolist()) & {2, 3}


class _AnyPlan(Budget):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def plan(self, masks: int, blocks: int = 1) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((1, 1), ValueError),
        ((4,), ValueError),
        ((-1, 4), ValueError),
        ((), ValueError),
        ((0, 3), ValueError),
        ((1.5, 1.5), TypeError),
        (None, TypeError),
    ],
)
def test_a_plan_that_is_none_is_refused_by_its_budgets_name(answer: Any, error: type) -> None:
    with pytest.raises(error, match=r"_AnyPlan\.plan\(masks=3, blocks=1\) must return .*, got "):
        generate(fake(), blank(3), "confidence", budget=_AnyPlan(answer))
    assert generate(fake(), blank(3), "confidence", budget=_AnyPlan([1, 2])).total.steps == 2


class _AnyNumber(Count):
    name = "any-number"
    home = "confidence"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def extend(self, step: Step, values: Tensor, among: Tensor, least: Tensor) -> Tensor:
        return self.answer(least)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda least: None, TypeError, "int64 tensor, got NoneType"),
        (lambda least: least + 0.5, TypeError, "int64 tensor, got torch.float32"),
        (lambda least: least[:0], ValueError, r"of shape \(B,\) = \(1,\), got \(0,\)"),
    ],
)
def test_a_count_that_answers_no_numbers_is_refused_by_name(answer, error, message) -> None:
    with pytest.raises(error, match=rf"_AnyNumber\.extend must return .*{message}"):
        generate(fake(), blank(3), Strategy(Confidence(), count=_AnyNumber(answer)))


class _AnyMove(Policy):
    name = "any-move"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def move(self, step: Step) -> Move:
        return self.answer(step)


def _move(step: Step, **changes: Any) -> Move:
    return replace(Move(step.eligible, step.proposal, Scores(step.stats.top1)), **changes)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda step: step.eligible, TypeError, "must return a Move, got Tensor"),
        (
            lambda step: _move(step, reveal=step.eligible.long()),
            ValueError,
            r"must return reveal of dtype torch\.bool and shape \(1, 3\), got torch\.int64",
        ),
        (
            lambda step: _move(step, tokens=step.proposal[:, :1]),
            ValueError,
            r"must return tokens of dtype torch\.int64 .* got torch\.int64 and \(1, 1\)",
        ),
        (
            lambda step: _move(step, tokens=step.proposal + 1000),
            ValueError,
            r"must write ids in \[0, \d+\), got others for sequence 0",
        ),
        (
            lambda step: _move(step, tokens=torch.full_like(step.proposal, -1)),
            ValueError,
            r"must write ids in \[0, \d+\), got others for sequence 0",
        ),
    ],
)
def test_a_move_that_is_none_is_refused_by_its_policys_name(answer, error, message) -> None:
    with pytest.raises(error, match=rf"_AnyMove\.move {message}"):
        generate(fake(), blank(3), _AnyMove(answer))


def test_what_is_no_denoiser_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"such as load_model\(\.\.\.\)\.denoiser, got object"):
        generate(object(), blank(3), "confidence")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda step: step.stats.top1, TypeError, "must return Scores, got Tensor"),
        (lambda step: Scores(torch.zeros(1, 1)), ValueError, r"shape \(B, P\) = \(1, 5\), got \(1"),
        (lambda step: Scores(torch.full((1, 5), torch.nan)), ValueError, "NaN for a position"),
    ],
)
def test_what_a_sampler_of_ones_own_must_not_answer_is_refused_with_its_name(
    answer, error, message: str
) -> None:
    @dataclass(frozen=True)
    class Own(Sampler):
        name: ClassVar[str] = "own"

        def score(self, step):
            return answer(step)

    with pytest.raises(error, match=f"Own.score .*{message}"):
        generate(fake(), blank(5), Own())


def test_a_canvas_longer_than_the_model_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="canvas has 41 positions; the model takes 40"):
        generate(tiny_denoiser("bert", 1), torch.full((41,), MASK_ID), "confidence")


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_logits_that_are_nan_or_allow_no_token_name_sequence_and_position(bad: float) -> None:
    table = table_of(CONFIDENCES)
    table[7] = bad
    with pytest.raises(ValueError, match="sequence 2, position 7 are NaN or allow no token"):
        generate(FakeDenoiser(table), [blank(3), blank(5), blank(9)], "confidence")


def test_the_number_of_a_nan_sequence_counts_all_batches_not_one() -> None:
    table = table_of(CONFIDENCES)
    table[7] = float("nan")
    with pytest.raises(ValueError, match="sequence 2, position 7"):
        generate(FakeDenoiser(table), [blank(3), blank(5), blank(9)], Confidence(), batch_size=1)


def test_guided_sampling_is_refused_inside_inference_mode_and_greedy_is_not() -> None:
    denoiser = tiny_denoiser("bert", 1)
    canvas = random_words(10, [1, 2, 3])
    with torch.inference_mode():
        assert MASK_ID not in generate(denoiser, canvas, "confidence").sequences[0].tolist()
        with pytest.raises(RuntimeError, match=r"inference_mode\(\); use torch\.no_grad\(\)"):
            generate(denoiser, canvas, BoE(tolerance=None, rho=0.5))


def test_generation_does_not_disturb_the_global_random_state() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    generate(fake(), blank(6), "random", temperature=1.0)
    assert torch.equal(torch.rand(3), expected)


def test_a_policy_that_makes_no_progress_is_an_error_and_not_an_endless_loop() -> None:
    @dataclass(frozen=True)
    class Idle(Policy):
        name = "idle"

        def move(self, step: Step) -> Move:
            nothing = torch.zeros_like(step.eligible)
            return Move(nothing, step.proposal, Scores(step.stats.top1))

    with pytest.raises(RuntimeError, match=r"no progress: 3 of 3 masks of sequence 0 are left"):
        generate(fake(), blank(3), Idle())
