"""How many positions a step reveals: EB-Sampler, threshold, factor, KLASS."""

from __future__ import annotations

import math

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, JointDenoiser, table_of

from boe import BoE, TokensPerStep, generate, sampler_from
from boe.samplers import Confidence, Entropy, EntropyBound, Factor, Klass, Strategy, Threshold

CONFIDENCES = [0.99, 0.5, 0.97, 0.6, 0.95, 0.7, 0.92, 0.85]


def revealed(spec: object, confidences: list[float] = CONFIDENCES, **options: object):
    denoiser = options.pop("denoiser", None) or FakeDenoiser(table_of(confidences))
    canvas = torch.full((len(confidences),), MASK)
    item = generate(denoiser, canvas, spec, trajectory=True, **options).items[0]
    return [record.revealed.tolist() for record in item.trajectory]


def entropy(top: float) -> float:
    rest = (1 - top) / 4
    return -top * math.log(top) - 4 * rest * math.log(rest)


# --- EB-Sampler -----------------------------------------------------------------------


def eb_by_hand(confidences: list[float], gamma: float) -> list[list[int]]:
    """The rule of the paper, position by position."""
    left = set(range(len(confidences)))
    steps = []
    while left:
        order = sorted(left, key=lambda k: (entropy(confidences[k]), k))
        taken: list[int] = []
        for k in order:
            costs = [entropy(confidences[j]) for j in (*taken, k)]
            if taken and sum(costs) - max(costs) > gamma:
                break
            taken.append(k)
        steps.append(sorted(taken))
        left -= set(taken)
    return steps


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.3, 1.0, 100.0])
def test_eb_reveals_the_longest_prefix_within_its_bound(gamma: float) -> None:
    expected = eb_by_hand(CONFIDENCES, gamma)
    assert revealed(f"eb:gamma={gamma}") == expected
    assert (gamma == 100.0) == (len(expected) == 1)
    assert (gamma == 0.0) == (len(expected) == 8)


def test_eb_counts_each_row_for_itself() -> None:
    rows = [[0.99, 0.98, 0.97, 0.6], [0.5, 0.45, 0.4, 0.35]]
    table = torch.stack([table_of(row) for row in rows])

    class ByRow(FakeDenoiser):
        """Which table a canvas gets is what its first, observed token says."""

        def predict(self, canvas, positions, keep="nothing"):
            prediction = super().predict(canvas, positions, keep)
            which = canvas.ids[:, 0] - 1
            at = (positions - 1).clamp_min(0)
            logits = table[which.unsqueeze(1), at].clone()
            logits[..., MASK] = -torch.inf
            return type(prediction)(canvas, logits, positions, keep)

    denoiser = ByRow(table_of([0.5] * 5))
    canvases = torch.tensor([[1, 0, 0, 0, 0], [2, 0, 0, 0, 0]])
    result = generate(denoiser, canvases, "eb:gamma=0.25", trajectory=True)
    steps = [[len(r.revealed) for r in item.trajectory] for item in result.items]
    expected = [[len(step) for step in eb_by_hand(row, 0.25)] for row in rows]
    assert steps == expected
    assert expected[0] != expected[1]
    assert [item.account.nfe_forward for item in result.items] == [len(s) for s in expected]


def test_eb_goes_down_any_ranking() -> None:
    # Margins rank as confidences do here; random ranks do not.
    assert revealed("margin+eb:gamma=0.3") == eb_by_hand(CONFIDENCES, 0.3)
    assert revealed("random+eb:gamma=100") == [list(range(8))]


def test_eb_never_goes_below_the_budget() -> None:
    steps = revealed("eb:gamma=0", budget=TokensPerStep(3))
    assert [len(step) for step in steps] == [3, 3, 2]


def test_eb_with_boe_takes_only_candidates_in() -> None:
    influence = torch.tensor([0.0, 9.0, 1.0, 9.0, 2.0, 9.0, 3.0, 9.0]).double()
    denoiser = FakeDenoiser(table_of(CONFIDENCES), influence)
    which = BoE(rho=0.5, tolerance=None, sure=None)  # candidates 0, 2, 4, 6; best influence first
    strategy = Strategy(which, count=EntropyBound(100.0))
    assert revealed(strategy, denoiser=denoiser)[0] == [0, 2, 4, 6]
    few = Strategy(which, count=EntropyBound(entropy(0.95) + 1e-9))
    denoiser = FakeDenoiser(table_of(CONFIDENCES), influence)
    # Down the influences: 6 and 4 (the larger entropy is free), with 2 the bound is broken.
    assert revealed(few, denoiser=denoiser)[0] == [4, 6]


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.3, 1.0, 100.0])
@pytest.mark.parametrize("budget", [1, 3])
def test_eb_along_the_entropies_is_eb_where_entropy_ranks(gamma: float, budget: int) -> None:
    plain, along = (
        revealed(f"eb:gamma={gamma},along={way}", budget=TokensPerStep(budget))
        for way in ("ranking", "entropy")
    )
    assert along == plain


def test_eb_along_the_entropies_lets_boe_choose_what_goes_with_the_sure() -> None:
    influence = torch.tensor([0.0, 9.0, 1.0, 7.0, 2.0, 9.0, 3.0, 8.0]).double()
    denoiser = FakeDenoiser(table_of(CONFIDENCES), influence)
    which = BoE(candidates="all", probes="masked", rho=1.0, tolerance=None)
    gamma = entropy(0.99) + entropy(0.97) + 1e-9
    strategy = Strategy(which, count=EntropyBound(gamma, along="entropy"))
    first = revealed(strategy, denoiser=denoiser)[0]
    assert first == [0, 1, 2], "the two surest, and the most influential of the others"
    denoiser = FakeDenoiser(table_of(CONFIDENCES), influence)
    more = revealed(strategy, denoiser=denoiser, budget=TokensPerStep(4))[0]
    assert more == [0, 1, 2, 5], "the sure ones count towards the budget"


def test_eb_refuses_an_unknown_way() -> None:
    with pytest.raises(ValueError, match="along must be 'ranking' or 'entropy', got 'margin'"):
        EntropyBound(along="margin")


# --- Fast-dLLM ------------------------------------------------------------------------


def test_a_threshold_reveals_all_above_it_and_always_the_best() -> None:
    assert revealed("threshold:value=0.9") == [[0, 2, 4, 6], [7], [5], [3], [1]]
    assert revealed("threshold") == revealed("threshold:value=0.9")


def test_below_the_threshold_the_budget_fills_up_by_rank() -> None:
    steps = revealed("threshold:value=0.96", budget=TokensPerStep(3))
    assert steps == [[0, 2, 4], [5, 6, 7], [1, 3]]


def factor_by_hand(confidences: list[float], factor: float) -> list[list[int]]:
    left = list(range(len(confidences)))
    steps = []
    while left:
        order = sorted(left, key=lambda k: (-confidences[k], k))
        best = 1
        for n in range(1, len(order) + 1):
            if confidences[order[n - 1]] >= 1 - factor / (n + 1):
                best = max(best, n)
        steps.append(sorted(order[:best]))
        left = [k for k in left if k not in order[:best]]
    return steps


@pytest.mark.parametrize("factor", [0.1, 0.3, 1.0, 5.0])
def test_the_factor_rule_is_the_largest_n_that_satisfies_it(factor: float) -> None:
    expected = factor_by_hand(CONFIDENCES, factor)
    assert revealed(f"factor:factor={factor}") == expected
    assert 1 <= len(expected[0]) <= 8


def test_boe_is_asked_only_where_too_few_tokens_are_sure() -> None:
    influence = torch.arange(8).double()
    denoiser = FakeDenoiser(table_of(CONFIDENCES), influence)
    which = BoE(rho=1.0, tolerance=None, candidates="all", probes="masked")
    strategy = Strategy(which, count=Threshold(0.9))
    result = generate(denoiser, torch.full((8,), MASK), strategy, trajectory=True).items[0]
    steps = [record.revealed.tolist() for record in result.trajectory]
    # Sure ones first, then by influence, the last one without a choice.
    assert steps == [[0, 2, 4, 6], [7], [5], [3], [1]]
    assert result.account.n_backward == 3
    assert [sorted(record.parts) for record in result.trajectory[:2]] == [
        [],
        ["candidate", "gate", "penalty", "probe", "tis"],
    ]


# --- KLASS ----------------------------------------------------------------------------


def test_klass_waits_until_predictions_have_settled() -> None:
    # Predictions never change: the first divergence is to nothing, the next two are 0.
    steps = revealed("klass:confidence=0.8")
    assert steps == [[0], [2], [4, 6, 7], [5], [3], [1]]


def test_klass_without_anything_ready_reveals_the_budget_and_else_all_that_is_ready() -> None:
    steps = revealed("klass:confidence=0.94", budget=TokensPerStep(3))
    assert steps[:2] == [[0, 2, 4], [5, 6, 7]]
    steps = revealed("klass:confidence=0.94,history=1", budget=TokensPerStep(2))
    assert steps[:2] == [[0, 2], [4]], "one ready token is revealed alone, as the authors do"


def test_klass_over_entropy_falls_back_on_the_least_entropy() -> None:
    # The authors' code ranks the most uncertain first here.
    steps = revealed("entropy+klass:confidence=0.995")
    assert steps == [[0], [2], [4], [6], [7], [5], [3], [1]]


def test_klass_starts_afresh_in_every_block() -> None:
    steps = revealed("klass:confidence=0.4", block_length=4)
    assert steps == [[0], [2], [1, 3], [4], [6], [5, 7]]


def test_klass_measures_the_divergence_of_each_position_from_its_last_prediction() -> None:
    generator = torch.Generator().manual_seed(2)
    denoiser = JointDenoiser(torch.rand((3,) * 5, generator=generator) ** 3)
    bound = 0.01
    item = generate(
        denoiser,
        torch.full((5,), MASK),
        Strategy(Confidence(), count=Klass(confidence=0.0, divergence=bound, history=1)),
        trajectory=True,
    ).items[0]
    before, mixed = None, False
    for record, canvas in zip(item.trajectory, denoiser.canvases, strict=True):
        p = denoiser.conditionals(canvas.ids)[0]
        settled = []
        if before is not None:
            kl = (p * ((p + 1e-12).log() - (before + 1e-12).log())).sum(dim=1)
            settled = [k for k in record.positions.tolist() if kl[k] < bound]
            mixed |= 0 < len(settled) < len(record.positions)
        if settled:
            assert record.revealed.tolist() == settled
        else:
            assert len(record.revealed) == 1
        before = p
    assert mixed, "the case tells settled from unsettled positions"


def test_memory_leaves_the_batch_with_its_row() -> None:
    confidences = CONFIDENCES + CONFIDENCES
    denoiser = FakeDenoiser(table_of(confidences))
    canvases = [torch.full((n,), MASK) for n in (2, 16, 9)]
    for spec in ("klass:confidence=0.8", "mdlm:steps=6+remdm-conf"):
        together = generate(denoiser, canvases, spec, trajectory=True)
        for k, canvas in enumerate(canvases):
            alone = generate(denoiser, canvas, spec, item_ids=[k], trajectory=True).items[0]
            ours = together.items[k]
            assert [r.revealed.tolist() for r in ours.trajectory] == [
                r.revealed.tolist() for r in alone.trajectory
            ]


# --- refusals and specs ---------------------------------------------------------------


def test_a_count_alone_goes_with_the_ranking_it_was_made_for() -> None:
    assert sampler_from("eb") == Strategy(Entropy(), count=EntropyBound())
    assert sampler_from("threshold:value=0.8") == Strategy(Confidence(), count=Threshold(0.8))
    assert sampler_from("factor") == Strategy(Confidence(), count=Factor())
    assert sampler_from("klass") == Strategy(Confidence(), count=Klass())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("eb:gamma=-1", "gamma must be finite and not negative, got -1.0"),
        ("threshold:value=0", r"value must be in \(0, 1\], got 0\.0"),
        ("factor:factor=0", "factor must be finite and above 0, got 0.0"),
        ("klass:confidence=1", r"confidence must be in \[0, 1\), got 1\.0"),
        ("klass:divergence=0", "divergence must be finite and above 0, got 0.0"),
        ("klass:history=0", "history must be at least 1, got 0"),
    ],
)
def test_counts_out_of_range_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_from(spec)
