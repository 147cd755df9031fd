"""BoE that scores only every s steps."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, table_of

from boe import BoE, Strategy, TokensPerStep, generate, sampler_from, spec_of
from boe.decoding import Generation
from boe.samplers import Threshold
from boe.samplers.base import Clock
from boe.samplers.candidates import may_compete

CONFIDENCES = [0.90, 0.89, 0.88, 0.87, 0.86, 0.85, 0.84, 0.83]
INFLUENCE = torch.tensor([0.1, 0.6, 0.2, 0.5, 0.3, 0.4, 0.0, 0.7])


def decode(
    denoiser: FakeDenoiser, length: int = 8, batch: int = 1, block: int | None = None, **options
) -> Generation:
    sampler = BoE(rho=0.75, tolerance=None, **options)
    canvases = [torch.full((length,), MASK) for _ in range(batch)]
    return generate(denoiser, canvases, sampler, block_length=block, trajectory=True)


def order_of(result: Generation, item: int = 0) -> list[int]:
    return [int(step.revealed) for step in result.items[item].trajectory]


def test_by_default_every_step_is_scored() -> None:
    assert BoE().every == 1
    denoiser = FakeDenoiser(table_of(CONFIDENCES), INFLUENCE)
    account = decode(denoiser).items[0].account
    # At three masks ⌈0.75·3⌉ = 3 candidates leave no probe.
    assert account.n_backward == 5


@pytest.mark.parametrize(("every", "backwards"), [(2, 3), (3, 2), (4, 2), (100, 1)])
def test_only_scored_steps_are_charged(every: int, backwards: int) -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), INFLUENCE, forwards=1)
    account = decode(denoiser, every=every).items[0].account
    assert len(denoiser.requests) == backwards
    assert account.n_backward == backwards
    assert account.nfe_forward == 8 + backwards
    rows = sum(int((request.active >= 0).sum()) for request in denoiser.requests)
    assert account.flop_equiv == pytest.approx(8 + backwards + 2 * rows / 8)


def test_steps_between_keep_nothing_for_a_gradient() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), INFLUENCE)
    decode(denoiser, every=2)
    kept = ["keys_values", "nothing"] * 4
    assert denoiser.keeps == kept


def test_steps_between_rank_by_the_last_scores_then_by_confidence() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), INFLUENCE)
    result = decode(denoiser, every=3)
    # Step 0 scores the six most confident, 0 … 5. Of them 1 is best; then 3 (step 1), and
    # in step 2, whose ⌈0.75·6⌉ = 5 candidates 0, 2, 4, 5, 6 include an unscored one, 5.
    # Step 3 scores 0, 2, 4, 6 anew (⌈0.75·5⌉ = 4): 4 leads; then 2, 0; step 6 has a choice
    # without probes: confidence.
    assert order_of(result) == [1, 3, 5, 4, 2, 0, 6, 7]
    scored = ["tis" in step.parts for step in result.items[0].trajectory]
    assert scored == [True, False, False, True, False, False, False, False]


def test_steps_between_can_rank_by_confidence_alone() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), INFLUENCE)
    assert order_of(decode(denoiser, every=3, between="confidence"))[:4] == [1, 0, 2, 3]


def test_an_unscored_candidate_ranks_below_every_scored_one_whatever_its_confidence() -> None:
    table = table_of([0.5, 0.6, 0.7, 0.8])

    class Growing(FakeDenoiser):
        """Position 3 is predicted badly in the first step, and best from then on."""

        def predict(self, canvas, positions, keep="nothing"):
            wanted = [0.5, 0.6, 0.7, 0.3 if not self.canvases else 0.99]
            self.table = table_of(wanted)
            return super().predict(canvas, positions, keep)

    denoiser = Growing(table, torch.tensor([-9.0, -1.0, -5.0, 0.0]))
    sampler = BoE(rho=0.75, tolerance=None, every=4)
    result = generate(denoiser, torch.full((4,), MASK), sampler, trajectory=True)
    assert order_of(result)[:2] == [1, 2]


def test_every_block_begins_with_a_scored_step() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), INFLUENCE)
    result = decode(denoiser, block=4, every=100)
    scored = ["tis" in step.parts for step in result.items[0].trajectory]
    assert scored == [True, False, False, False, True, False, False, False]


def test_sequences_of_a_batch_keep_their_own_last_scores() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), INFLUENCE)
    sampler = BoE(rho=0.75, tolerance=None, every=3)
    short = torch.cat((torch.tensor([1, 1, 1]), torch.full((5,), MASK)))
    long = torch.full((8,), MASK)
    together = generate(denoiser, [short, long], sampler, trajectory=True)
    alone = [generate(denoiser, canvas, sampler, trajectory=True) for canvas in (short, long)]
    for number in (0, 1):
        assert order_of(together, number) == order_of(alone[number])
        assert (
            together.items[number].account.flop_equiv == alone[number].items[0].account.flop_equiv
        )


def test_several_tokens_a_step_count_steps_and_not_tokens() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), INFLUENCE)
    sampler = BoE(rho=0.75, tolerance=None, every=2)
    result = generate(
        denoiser, torch.full((8,), MASK), sampler, budget=TokensPerStep(2), trajectory=True
    )
    scored = ["tis" in step.parts for step in result.items[0].trajectory]
    assert scored == [True, False, True, False]


def test_whether_a_step_is_scored_depends_on_its_place_in_the_block() -> None:
    clocks = [Clock(k, 9, 9, 1, 9 - k, 9, 0, 9, (1,) * 9) for k in range(5)]
    assert [BoE(every=2).steers(clock) for clock in clocks] == [True, False] * 2 + [True]
    assert all(Strategy(BoE()).steers(clock) for clock in clocks)
    assert not Strategy(BoE(every=2)).steers(clocks[1])


def test_a_step_that_reveals_all_its_candidates_keeps_nothing_for_a_gradient() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), INFLUENCE)
    sampler = BoE(rho=0.5, tolerance=None)
    generate(denoiser, torch.full((8,), MASK), sampler, budget=TokensPerStep(2))
    # Of 8, 6, 4 and 2 masks half are candidates, or two.
    assert denoiser.keeps == ["keys_values"] * 2 + ["nothing"] * 2
    assert len(denoiser.requests) == 2


def test_a_count_may_leave_fewer_to_choose_than_the_budget_plans() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), INFLUENCE)
    strategy = Strategy(BoE(rho=0.25, tolerance=None), count=Threshold(0.895))
    generate(denoiser, torch.full((8,), MASK), strategy, budget=TokensPerStep(2))
    # Position 0 is sure, so that the first step has one of two candidates to choose.
    assert denoiser.keeps == ["keys_values"] * 3 + ["nothing"]
    assert len(denoiser.requests) == 1


@pytest.mark.parametrize("rule", ["confidence", "all"])
@pytest.mark.parametrize("rho", ["0.01", "0.07", "0.1", "0.25", "0.3", "0.5", "0.6", "1.0"])
def test_whether_candidates_compete_is_known_before_the_forward(rule: str, rho: str) -> None:
    shares = [math.ceil(left * Fraction(rho)) for left in range(130)]
    for left in range(1, 130):
        for budget in range(1, min(left, 12)):
            candidates = left if rule == "all" else shares[left]
            clock = Clock(0, 1, 1, budget, left, left, 0, left, (left,))
            assert may_compete(clock, rule, float(rho)) == (candidates > budget)


def test_specifications_say_how_often_and_by_what() -> None:
    sampler = sampler_from("boe:every=4,between=confidence")
    assert sampler == BoE(every=4, between="confidence")
    assert spec_of(sampler) == "boe:every=4,between=confidence"


def test_impossible_intervals_are_refused() -> None:
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        BoE(every=0)
    with pytest.raises(ValueError, match="between must be one of last, confidence, got 'margin'"):
        BoE(between="margin")
