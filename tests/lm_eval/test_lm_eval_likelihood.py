"""The Monte-Carlo bound: against enumeration, by hand, and independent of batches."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from fake_denoiser import MASK, JointDenoiser
from toy_lm import ID, PositionDenoiser, continuation, toy_lm, whole

from boe.lm_eval.likelihood import LikelihoodEstimator, Passage, halving, windows


def joint(seed: int = 0, ids: int = 3, length: int = 4) -> JointDenoiser:
    generator = torch.Generator().manual_seed(seed)
    return JointDenoiser(torch.rand((ids,) * length, generator=generator) + 0.05)


def enumerated(denoiser: JointDenoiser, before: list[int], scored: list[int]) -> float:
    """The expectation of the bound, over all sets of masks."""
    n, total = len(scored), 0.0
    for size in range(1, n + 1):
        chosen = list(combinations(range(n), size))
        for masks in chosen:
            ids = torch.tensor([*before, *scored])
            for k in masks:
                ids[len(before) + k] = MASK
            log_p = denoiser.conditionals(ids.unsqueeze(0)).log()[0]
            value = sum(float(log_p[len(before) + k, scored[k]]) for k in masks)
            total += value * n / size / len(chosen) / n
    return total


def test_its_expectation_is_the_likelihood_of_a_consistent_model() -> None:
    denoiser = joint()
    before, scored = [2], [1, 3, 1]
    agrees = (denoiser.sequences[:, :1] == torch.tensor(before)).all(dim=1)
    right = (denoiser.sequences == torch.tensor(before + scored)).all(dim=1)
    truth = float((denoiser.probabilities[right] / denoiser.probabilities[agrees].sum()).log())
    assert enumerated(denoiser, before, scored) == pytest.approx(truth, abs=1e-12)


def test_many_draws_come_near_the_expectation() -> None:
    denoiser = joint(1)
    before, scored = [2], [1, 3, 1]
    passage = Passage(tuple(before), tuple(scored), (), "x")
    estimates = torch.tensor(
        [
            LikelihoodEstimator(denoiser, draws=12, batch_size=12, seed=seed)
            .estimate(passage)
            .log_probability
            for seed in range(60)
        ]
    )
    error = float(estimates.std() / len(estimates) ** 0.5)
    assert abs(float(estimates.mean()) - enumerated(denoiser, before, scored)) < 4 * error
    assert error < 0.05


def test_sizes_of_masks_are_spread_evenly() -> None:
    estimator = LikelihoodEstimator(joint(), draws=12)
    sizes = estimator.masks(4, "x").sum(dim=1)
    assert sizes.bincount().tolist() == [0, 3, 3, 3, 3]
    starts = {int(estimator.masks(5, str(key))[0].sum()) for key in range(40)}
    assert starts == {1, 2, 3, 4, 5}


def test_each_place_is_masked_as_often_as_another() -> None:
    masks = LikelihoodEstimator(joint(), draws=4000).masks(4, "x").double()
    # Sizes are 2.5 of 4 on average.
    assert (masks.mean(dim=0) - 0.625).abs().max() < 4 * (0.625 * 0.375 / 4000) ** 0.5


def test_one_id_takes_one_forward_and_is_exact() -> None:
    denoiser = joint()
    likelihood = LikelihoodEstimator(denoiser).estimate(Passage((1, 2, 3), (2,), (), "x"))
    exact = denoiser.conditionals(torch.tensor([[1, 2, 3, MASK]])).log()[0, 3, 2]
    assert likelihood.log_probability == pytest.approx(float(exact), abs=1e-12)
    assert (likelihood.account.nfe_forward, len(denoiser.canvases)) == (1, 1)


def test_the_batch_size_does_not_matter() -> None:
    passage = Passage((1,), (2, 3, 1), (), "x")
    one, seven = (
        LikelihoodEstimator(joint(), draws=16, batch_size=size).estimate(passage) for size in (1, 7)
    )
    assert one.log_probability == pytest.approx(seven.log_probability, abs=1e-12)
    assert one.account.nfe_forward == seven.account.nfe_forward == 16


def test_guidance_masks_the_context_in_a_second_forward() -> None:
    denoiser = joint()
    passage = Passage((1, 2, 3), (2,), (), "x")
    guided = LikelihoodEstimator(denoiser, guidance=1.5).estimate(passage)
    given = denoiser.conditionals(torch.tensor([[1, 2, 3, MASK]])).log()[0, 3, 1:]
    free = denoiser.conditionals(torch.full((1, 4), MASK)).log()[0, 3, 1:]
    expected = (given + 1.5 * (given - free)).log_softmax(dim=0)[1]
    assert guided.log_probability == pytest.approx(float(expected), abs=1e-12)
    assert guided.account.nfe_forward == 2


def test_greedy_is_told_from_other_texts() -> None:
    lm = toy_lm(PositionDenoiser(["a", "b", "c"]), mc_num=2)
    results = lm.loglikelihood([continuation("Q", "abc"), continuation("Q", "abd")])
    assert [greedy for _, greedy in results] == [True, False]
    assert results[0][0] > results[1][0]
    # Two draws, and one forward for each of three tokens.
    assert lm.costs.records[0].nfe_forward == 5
    unasked = toy_lm(PositionDenoiser(["a", "b", "c"]), mc_num=2, check_greedy=False)
    assert unasked.loglikelihood([continuation("Q", "abc")])[0] == (results[0][0], False)
    assert unasked.costs.records[0].nfe_forward == 2


def test_the_same_text_gets_the_same_estimate_wherever_it_stands() -> None:
    denoiser = PositionDenoiser(["a", "b", "c"], sharpness=1.0)
    requests = [continuation("Q", "abc"), continuation("", "Qab", doc=3)]
    one = toy_lm(denoiser, mc_num=3).loglikelihood(requests)
    assert toy_lm(denoiser, mc_num=3).loglikelihood(requests[::-1]) == one[::-1]
    assert toy_lm(denoiser, mc_num=3, seed=1).loglikelihood(requests) != one


def test_an_id_that_is_never_written_is_refused() -> None:
    with pytest.raises(ValueError, match="holds the id 0, which the model never writes"):
        LikelihoodEstimator(joint()).estimate(Passage((1,), (0, 2), (), "x"))
    with pytest.raises(ValueError, match="scored must hold at least one id"):
        Passage((1,), (), (), "x")


def test_contexts_that_are_too_long_are_refused_or_cut() -> None:
    denoiser = PositionDenoiser(["a"], max_length=4)
    request = continuation("Qabc", "de", doc=2)
    with pytest.raises(ValueError, match=r"toy/2: its texts have 2 tokens more than the 4"):
        toy_lm(denoiser, mc_num=1).loglikelihood([request])
    assert denoiser.canvases == []
    toy_lm(denoiser, mc_num=1, truncate=True, check_greedy=False).loglikelihood([request])
    assert denoiser.canvases[0].ids[0, :2].tolist() == [ID["b"], ID["c"]]


def test_what_stands_before_every_text_is_given_and_not_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for context in ("abc", "Qabc"):
        denoiser = PositionDenoiser(["a"], max_length=4)
        lm = toy_lm(denoiser, mc_num=1, truncate=True, check_greedy=False)
        monkeypatch.setattr(lm.texts, "prefix", [ID["Q"]])
        lm.loglikelihood([continuation(context, "de")])
        assert denoiser.canvases[0].ids[0, :2].tolist() == [ID["Q"], ID["c"]]


def test_windows_score_each_id_once_and_the_last_with_full_context() -> None:
    passages = windows(range(10, 20), (1,), (2,), 6, "x")
    assert [list(passage.scored) for passage in passages] == [
        [10, 11, 12, 13],
        [14, 15, 16, 17],
        [18, 19],
    ]
    assert [list(passage.before) for passage in passages] == [[1], [1], [1, 16, 17]]
    assert all(passage.after == (2,) for passage in passages)
    assert len(windows(range(10, 20), (), (), None, "x")) == 1
    with pytest.raises(ValueError, match="leaves no room"):
        windows(range(3), (1,), (2,), 2, "x")


def test_rolling_likelihoods_add_their_windows() -> None:
    denoiser = PositionDenoiser(["a"], max_length=4, sharpness=1.0)
    lm = toy_lm(denoiser, mc_num=2)
    (total,) = lm.loglikelihood_rolling([whole("abcabc")])
    parts = windows([ID[c] for c in "abcabc"], (), (), 4, str(lm.costs.records[0].key))
    expected = sum(lm.estimator.estimate(part).log_probability for part in parts)
    assert total == expected
    assert (lm.costs.records[0].tokens, lm.costs.records[0].nfe_forward) == (6, 4)


def test_a_batch_without_memory_is_halved_until_it_fits() -> None:
    sizes = []

    def run(items):  # type: ignore[no-untyped-def]
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("no memory")
        return [item * 10 for item in items]

    assert halving(run, [1, 2, 3, 4, 5]) == [10, 20, 30, 40, 50]
    assert sizes == [5, 3, 2, 1, 2]

    def never(items):  # type: ignore[no-untyped-def]
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        halving(never, [1, 2])
