"""What a rule rejects waits, with rules and predictions done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser
from torch import Tensor

from boe import Strategy, TokensPerStep, generate, sampler_from, spec_of
from boe.canvas import Canvas
from boe.decoding import Item, StepRecord
from boe.samplers import Confidence, Policy, Threshold, Verifier


def twice(canvas: Canvas) -> Tensor:
    """A rule: no token may stand twice."""
    same = canvas.ids.unsqueeze(1) == canvas.ids.unsqueeze(2)
    written = (canvas.ids != MASK) & canvas.valid
    return (same & written.unsqueeze(1) & written.unsqueeze(2)).sum(dim=(1, 2)) > written.sum(1)


def writing(tokens: list[int], confidences: list[float]) -> FakeDenoiser:
    """Position k is predicted to be ``tokens[k]`` with the k-th probability, the rest of it
    on id 9."""
    p = torch.zeros(len(tokens), 10, dtype=torch.float64)
    for k, (token, top) in enumerate(zip(tokens, confidences, strict=True)):
        p[k, 9] = 1.0 - top
        p[k, token] = top
    return FakeDenoiser(p.log())


def decode(
    denoiser: FakeDenoiser, strategy: Strategy, per_step: int = 1, canvas: Tensor | None = None
) -> tuple[list[list[int]], Item]:
    """What each step revealed."""
    canvas = torch.full((len(denoiser.table),), MASK) if canvas is None else canvas
    budget = TokensPerStep(per_step)
    item = generate(denoiser, canvas, strategy, budget=budget, trajectory=True).items[0]
    records: list[StepRecord] = item.trajectory or []
    return [record.revealed.tolist() for record in records], item


def verified(which: Policy | None = None, count: Threshold | None = None) -> Strategy:
    return Strategy(which or Confidence(), count=count, verifier=Verifier(twice))


def test_of_tokens_that_break_the_rule_together_the_best_ranked_is_revealed() -> None:
    denoiser = writing([1, 1, 2, 3], [0.8, 0.9, 0.7, 0.6])
    steps, item = decode(denoiser, verified(), per_step=2)
    # Position 0 would repeat the 1 of position 1: position 2, the next, takes its place.
    assert steps[0] == [1, 2]
    assert item.trajectory[0].positions[item.trajectory[0].parts["rejected"]].tolist() == [0]


def test_a_token_that_what_is_written_forbids_waits_for_all_others() -> None:
    denoiser = writing([5, 1, 2, 3], [0.95, 0.9, 0.7, 0.6])
    canvas = torch.tensor([MASK, MASK, MASK, MASK])
    longer = FakeDenoiser(torch.cat((denoiser.table, denoiser.table[:1])))
    given = torch.cat((canvas, torch.tensor([5])))
    steps, item = decode(longer, verified(), canvas=given)
    assert steps == [[1], [2], [3], [0]], "at last it is revealed all the same"
    assert item.ids.tolist() == [5, 1, 2, 3, 5]


def test_a_count_reveals_fewer_but_never_less_than_the_budget() -> None:
    denoiser = writing([1, 1, 1, 2], [0.95, 0.94, 0.93, 0.5])
    every, _ = decode(denoiser, replace(verified(count=Threshold(0.9)), verifier=None))
    assert every[0] == [0, 1, 2]
    fewer, _ = decode(denoiser, verified(count=Threshold(0.9)))
    assert fewer[0] == [0]
    filled, _ = decode(denoiser, verified(count=Threshold(0.9)), per_step=2)
    assert filled[0] == [0, 3], "a position below the threshold fills the budget up"
    nothing_else = writing([1, 1, 1, 1], [0.95, 0.94, 0.93, 0.92])
    forced, _ = decode(nothing_else, verified(count=Threshold(0.9)), per_step=2)
    assert forced[0] == [0, 1], "what is rejected fills it up where nothing else is left"


def test_a_canvas_that_is_broken_already_is_left_to_the_ranking() -> None:
    denoiser = writing([3, 4, 5, 1, 1], [0.9, 0.8, 0.7, 0.6, 0.6])
    broken = torch.tensor([MASK, MASK, MASK, 1, 1])
    steps, _ = decode(denoiser, verified(), per_step=2, canvas=broken)
    plain, _ = decode(denoiser, Strategy(Confidence()), per_step=2, canvas=broken)
    assert steps == plain == [[0, 1], [2]]


def test_no_forward_is_spent_and_a_rule_that_nothing_breaks_changes_nothing() -> None:
    denoiser = writing([1, 2, 3, 4, 5], [0.9, 0.5, 0.8, 0.6, 0.7])
    with_rule, item = decode(denoiser, verified(), per_step=2)
    without, plain = decode(denoiser, Strategy(Confidence()), per_step=2)
    assert with_rule == without
    assert item.account.flop_equiv == plain.account.flop_equiv


def test_sequences_of_a_batch_get_what_they_get_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    denoiser = FakeDenoiser(3.0 * torch.randn(8, 6, generator=generator).double())
    canvases = [torch.full((n,), MASK) for n in (8, 3, 6)]
    canvases[2][1] = 4
    strategy = verified(count=Threshold(0.5))
    together = generate(denoiser, canvases, strategy, budget=TokensPerStep(2), trajectory=True)
    for item, canvas in zip(together.items, canvases, strict=True):
        steps, alone = decode(denoiser, strategy, 2, canvas)
        assert [record.revealed.tolist() for record in item.trajectory] == steps
        assert torch.equal(item.ids, alone.ids)


def test_blocks_are_kept_to() -> None:
    denoiser = writing([1, 1, 2, 3], [0.9, 0.8, 0.7, 0.6])
    items = generate(
        denoiser, torch.full((4,), MASK), verified(), block_length=2, trajectory=True
    ).items
    revealed = [record.revealed.tolist() for record in items[0].trajectory]
    assert revealed == [[0], [1], [2], [3]], "nothing else is left in the block"


def test_a_specification_names_the_tasks_rule_and_needs_one() -> None:
    strategy = sampler_from("boe+eb:gamma=0.05+verified")
    assert strategy.verifier == Verifier()
    assert spec_of(strategy) == "boe+eb:gamma=0.05+verified"
    with pytest.raises(ValueError, match="verified needs a rule"):
        generate(writing([1], [0.9]), torch.tensor([MASK]), strategy)
    with pytest.raises(ValueError, match="violated has no text form"):
        spec_of(replace(strategy, verifier=Verifier(twice)))
    with pytest.raises(ValueError, match="two parts that decide verifier"):
        sampler_from("entropy+verified+verified")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lookum+verified", "verified needs a policy that ranks positions; lookum decides"),
        ("mdlm+verified", "verified needs a policy that ranks positions; mdlm decides"),
        ("entropy+remdm-cap+verified", "verified does not go with remask='remdm-cap'"),
    ],
)
def test_policies_that_do_not_rank_or_take_tokens_back_have_no_verifier(spec, message) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_from(spec)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (0, TypeError, r"violated must return a bool tensor \(B,\), got int"),
        (torch.zeros(1), ValueError, r"bool of shape \(B,\) = \(1,\), got torch.float32 of shape"),
        (torch.zeros(1, 3).bool(), ValueError, r"= \(1,\), got torch.bool of shape \(1, 3\)"),
    ],
)
def test_a_rule_that_answers_something_else_is_refused(answer, error, message: str) -> None:
    strategy = Strategy(Confidence(), verifier=Verifier(lambda canvas: answer))
    with pytest.raises(error, match=message):
        decode(writing([1, 2, 3], [0.9, 0.8, 0.7]), strategy)
