"""BoE's pieces: candidates, probes, active rows, scores."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, table_of
from tiny_models import random_words, tiny_denoiser

from boe import BoE, TokensPerStep, generate
from boe.canvas import Canvas
from boe.decoding import StepRecord
from boe.denoisers import GradientRequest
from boe.samplers.base import share_of

CONFIDENCES = [0.9, 0.3, 0.8, 0.4, 0.7, 0.5, 0.6, 0.35, 0.85, 0.45]


def first_step(
    sampler: BoE, budget: int = 1, denoiser: FakeDenoiser | None = None, length: int = 10
) -> StepRecord:
    denoiser = FakeDenoiser(table_of(CONFIDENCES)) if denoiser is None else denoiser
    canvas = torch.full((length,), MASK)
    result = generate(denoiser, canvas, sampler, budget=TokensPerStep(budget), trajectory=True)
    return result.items[0].trajectory[0]


def members(record: StepRecord, part: str) -> list[int]:
    return record.positions[record.parts[part]].tolist()


def candidates_of(record: StepRecord) -> list[int]:
    """Whatever does not score −∞; also where there is nothing to steer."""
    return record.positions[record.scores > -torch.inf].tolist()


# --- candidates -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rho", "budget", "expected"),
    [
        (0.25, 1, [0, 2, 8]),  # ⌈2.5⌉ = 3
        (0.2, 1, [0, 8]),
        (0.01, 1, [0]),
        (0.01, 3, [0, 2, 8]),  # never fewer than are revealed
        (0.55, 2, [0, 2, 4, 5, 6, 8]),
    ],
)
def test_rho_is_rounded_up_and_never_below_the_budget(rho, budget, expected) -> None:
    record = first_step(BoE(rho=rho, tolerance=None), budget)
    assert candidates_of(record) == expected


def test_a_share_is_rounded_up_from_its_decimals() -> None:
    counts = range(0, 5000, 7)
    for percent in range(1, 101):
        shares = share_of(torch.tensor(counts), percent / 100)
        assert shares.tolist() == [-(-count * percent // 100) for count in counts]


def test_candidates_come_from_the_block() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES))
    result = generate(
        denoiser,
        torch.full((10,), MASK),
        BoE(rho=0.5, tolerance=None),
        block_length=4,
        trajectory=True,
    )
    record = result.items[0].trajectory[0]
    assert candidates_of(record) == [0, 2]
    assert members(record, "probe") == [1, 3, 4, 5, 6, 7, 8, 9], "probes come from everywhere"


@pytest.mark.parametrize(
    ("tolerance", "budget", "expected"),
    [
        (0.0, 1, [0]),
        (0.06, 1, [0, 8]),
        (0.11, 1, [0, 2, 8]),
        (0.06, 2, [0, 2, 8]),  # the second largest, 0.85, sets the bar at 0.79
        (1.0, 1, [0, 2, 4, 5, 6, 8]),  # ρ still limits
    ],
)
def test_tolerance_bounds_what_certainty_a_candidate_may_lack(tolerance, budget, expected) -> None:
    record = first_step(BoE(rho=0.6, tolerance=tolerance), budget)
    assert candidates_of(record) == expected


@pytest.mark.parametrize(
    ("sure", "budget", "steers"),
    [
        (None, 1, True),
        (0.9, 1, False),
        (0.91, 1, True),
        (0.84, 2, False),  # the second largest is 0.85
        (0.86, 2, True),
    ],
)
def test_no_gradient_is_taken_where_the_greedy_choice_is_sure(sure, budget, steers) -> None:
    sampler = BoE(rho=0.6, tolerance=None, sure=sure)
    denoiser = FakeDenoiser(table_of(CONFIDENCES))
    record = first_step(sampler, budget, denoiser)
    assert ("tis" in record.parts) == steers
    if not steers:
        assert sorted(record.revealed.tolist()) == [0, 8][:budget]


def test_certainty_adds_the_logarithm_of_the_top_probability() -> None:
    plain, mixed = (first_step(BoE(rho=0.6, tolerance=None, certainty=k)) for k in (0.0, 2.5))
    chosen = plain.parts["candidate"]
    risk = 2.5 * torch.tensor(CONFIDENCES).log()[chosen]
    torch.testing.assert_close(mixed.scores[chosen], plain.scores[chosen] + risk)


PROBABILITIES = torch.tensor(
    [
        [0.0, 0.60, 0.40, 0.00, 0.00, 0.00],  # most confident
        [0.0, 0.55, 0.12, 0.11, 0.11, 0.11],  # largest margin
        [0.0, 0.599, 0.401, 0.0, 0.0, 0.0],
        [0.0, 0.20, 0.20, 0.20, 0.20, 0.20],
        [0.0, 0.500, 0.500, 0.0, 0.0, 0.0],
        [0.0, 0.40, 0.30, 0.30, 0.0, 0.0],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("confidence", [0, 2]),
        ("margin", [0, 1]),
        ("entropy", [0, 2]),
        ("entropy_band", [2, 4]),
    ],
)
def test_candidate_rules_rank_by_what_they_say(rule: str, expected: list[int]) -> None:
    # Entropies: .6730, 1.34, .6735, 1.61, .6931, 1.09; the (lower) median is .6931.
    denoiser = FakeDenoiser(PROBABILITIES.log())
    sampler = BoE(candidates=rule, rho=0.3, tolerance=None)
    assert candidates_of(first_step(sampler, denoiser=denoiser, length=6)) == expected


def test_all_makes_every_eligible_position_a_candidate() -> None:
    sampler = BoE(candidates="all", probes="masked", rho=0.1, tolerance=None)
    assert candidates_of(first_step(sampler)) == list(range(10))


def test_random_candidates_change_with_the_seed_and_keep_their_number() -> None:
    sets = set()
    for seed in range(6):
        result = generate(
            FakeDenoiser(table_of(CONFIDENCES)),
            torch.full((10,), MASK),
            BoE(candidates="random", tolerance=None),
            seed=seed,
            trajectory=True,
        )
        sets.add(tuple(candidates_of(result.items[0].trajectory[0])))
    assert {len(s) for s in sets} == {3}
    assert len(sets) > 2


# --- probes and active rows -----------------------------------------------------------


@pytest.mark.parametrize(
    ("probes", "expected"),
    [
        ("complement", [1, 3, 4, 5, 6, 7, 9]),
        ("masked", list(range(10))),
        ("masked_minus_self", list(range(10))),
    ],
)
def test_probe_sets_are_what_they_say(probes: str, expected: list[int]) -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES))
    record = first_step(BoE(probes=probes, tolerance=None), denoiser=denoiser)
    assert members(record, "probe") == expected
    assert denoiser.requests[0].subtract_self == (probes == "masked_minus_self")


def test_max_probes_keeps_those_of_the_highest_entropy() -> None:
    record = first_step(BoE(max_probes=3, tolerance=None))
    assert members(record, "probe") == [1, 3, 7]


def active_rows(sampler: BoE, **options: object) -> list[int]:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), **options)
    canvas = torch.tensor([MASK, 1, MASK, MASK, 2, MASK, 3, 4, MASK, 5])  # masks 0 2 3 5 8
    generate(denoiser, canvas, sampler)
    return [row for row in denoiser.requests[0].active[0].tolist() if row >= 0]


BRIDGE_SCORES = torch.tensor([9.0, 0.1, 9.0, 9.0, 0.4, 9.0, 0.3, 0.2, 9.0, 0.5])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"active": "candidates", "probes": "masked"}, [0, 8]),
        ({"active": "candidates_probes"}, [0, 2, 3, 5, 8]),
        ({"active": "candidates_probes", "max_probes": 1}, [0, 3, 8]),
        ({"active": "masked", "max_probes": 1}, [0, 2, 3, 5, 8]),
        ({"active": "all"}, list(range(10))),
        # 5 observed rows: ⌈0.25·5⌉ = 2 and ⌈0.6·5⌉ = 3 bridges.
        ({"active": "bridges"}, [0, 2, 3, 4, 5, 8, 9]),
        ({"active": "bridges", "bridges": 0.6}, [0, 2, 3, 4, 5, 6, 8, 9]),
        ({"active": "bridges", "bridges": 0.0}, [0, 2, 3, 5, 8]),
        ({"active": "bridges", "bridges": 1.0}, list(range(10))),
    ],
)
def test_active_sets_are_what_they_say(options: dict, expected: list[int]) -> None:
    sampler = BoE(tolerance=None, rho=0.4, **options)
    assert active_rows(sampler, bridge_scores=BRIDGE_SCORES) == expected


def test_random_bridges_are_observed_rows() -> None:
    rows = active_rows(BoE(tolerance=None, active="bridges", bridges=0.4, bridge_rule="random"))
    assert len(rows) == 5 + 2
    assert {0, 2, 3, 5, 8} < set(rows)


@pytest.mark.parametrize(
    ("sampler", "keep"),
    [
        (BoE(), "keys_values"),
        (BoE(active="bridges"), "attention"),
        (BoE(active="bridges", bridge_rule="random"), "keys_values"),
        (BoE(alpha=0.0, engine="late"), "graph"),
        (BoE(alpha=0.0, engine="dense"), "dense_graph"),
    ],
)
def test_a_prediction_keeps_what_the_sampler_needs(sampler: BoE, keep: str) -> None:
    assert sampler.keep == keep


def test_the_request_carries_the_options_through() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES))
    first_step(BoE(alpha=0.75, context="full", top_k=4, tolerance=None), denoiser=denoiser)
    request = denoiser.requests[0]
    assert (request.alpha, request.context, request.engine, request.top_k) == (
        0.75,
        "full",
        "replay",
        4,
    )


# --- scores ---------------------------------------------------------------------------

INFLUENCE = torch.tensor([-1.0, 0, 3.0, 0, 2.0, 0, 0, 0, 0.5, 0]).double()
STEERED = {"rho": 0.4, "tolerance": None}  # candidates 0, 2, 4, 8


def scored(**options: object) -> StepRecord:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), INFLUENCE)
    return first_step(BoE(**{**STEERED, **options}), denoiser=denoiser)


def test_the_candidate_of_the_largest_influence_is_revealed_first() -> None:
    record = scored()
    assert candidates_of(record) == [0, 2, 4, 8]
    assert record.scores[[0, 2, 4, 8]].tolist() == [-1.0, 3.0, 2.0, 0.5]
    assert record.revealed.tolist() == [2]
    assert record.tokens.tolist() == [3]


def test_positions_that_are_no_candidates_score_minus_infinity() -> None:
    record = scored()
    others = [1, 3, 5, 6, 7, 9]
    assert bool((record.scores[others] == -torch.inf).all())


def gate_by_hand(record: StepRecord) -> torch.Tensor:
    return (1 - record.entropy / math.log(6)).clamp(0, 1)


def test_the_gate_is_one_minus_the_relative_entropy() -> None:
    record = scored(gate="paper")
    torch.testing.assert_close(record.parts["gate"], gate_by_hand(record))
    p = torch.tensor([0.9] + [0.025] * 4).double()
    entropy = float(-(p * p.log()).sum())
    assert float(record.parts["gate"][0]) == pytest.approx(1 - entropy / math.log(6))


def test_the_papers_gate_multiplies_negative_scores_too_and_the_positive_gate_does_not() -> None:
    gate = gate_by_hand(scored())[[0, 2, 4, 8]]
    tis = INFLUENCE[[0, 2, 4, 8]]
    torch.testing.assert_close(scored(gate="paper").scores[[0, 2, 4, 8]], tis * gate)
    expected = torch.where(tis > 0, tis * gate, tis)
    torch.testing.assert_close(scored(gate="positive").scores[[0, 2, 4, 8]], expected)
    torch.testing.assert_close(scored(gate="none").scores[[0, 2, 4, 8]], tis)


def test_the_penalty_falls_on_low_entropy_and_shrinks_as_masks_run_out() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), torch.zeros(10).double())
    sampler = BoE(penalty=2.0, floor=1.5, **STEERED)
    result = generate(denoiser, torch.full((10,), MASK), sampler, trajectory=True)
    first, second = result.items[0].trajectory[:2]
    expected = 2.0 * (1.5 - first.entropy).clamp_min(0).square()
    torch.testing.assert_close(first.parts["penalty"], expected, rtol=1e-6, atol=1e-7)
    assert float(first.parts["penalty"][0]) > float(first.parts["penalty"][4]) > 0
    # With no influence the least certain candidate has the smallest penalty.
    assert first.revealed.tolist() == [4]
    later = 2.0 * (1.5 * 0.9 - second.entropy).clamp_min(0).square()
    torch.testing.assert_close(second.parts["penalty"], later, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        first.scores[[0, 2, 4, 8]], -expected[[0, 2, 4, 8]], rtol=1e-6, atol=1e-7
    )


def test_an_annealed_penalty_shrinks_with_its_weight_too() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), torch.zeros(10).double())
    sampler = BoE(penalty=2.0, floor=1.5, penalty_anneal=True, **STEERED)
    second = (
        generate(denoiser, torch.full((10,), MASK), sampler, trajectory=True).items[0].trajectory[1]
    )
    expected = 0.9 * 2.0 * (1.5 * 0.9 - second.entropy).clamp_min(0).square()
    torch.testing.assert_close(second.parts["penalty"], expected, rtol=1e-6, atol=1e-7)


def test_z_scores_have_mean_0_and_deviation_1_over_the_candidates() -> None:
    scores = scored(normalise="zscore").scores[[0, 2, 4, 8]]
    tis = INFLUENCE[[0, 2, 4, 8]]
    expected = (tis - tis.mean()) / tis.std(correction=0)
    torch.testing.assert_close(scores, expected)


def test_min_max_runs_from_0_to_1_over_the_candidates() -> None:
    scores = scored(normalise="minmax").scores[[0, 2, 4, 8]]
    torch.testing.assert_close(scores, (INFLUENCE[[0, 2, 4, 8]] + 1) / 4)


@pytest.mark.parametrize("how", ["zscore", "minmax"])
def test_normalising_equal_scores_gives_finite_equal_scores(how: str) -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), torch.full((10,), 0.7).double())
    record = first_step(BoE(normalise=how, **STEERED), denoiser=denoiser)
    candidates = record.scores[[0, 2, 4, 8]]
    assert bool(candidates.isfinite().all())
    assert float(candidates.max() - candidates.min()) < 1e-6
    assert record.revealed.tolist() == [0]


def test_without_probes_a_step_goes_by_confidence() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), -torch.arange(10.0).double())
    record = first_step(BoE(rho=1.0, tolerance=None), denoiser=denoiser)  # C = M, S = ∅
    assert denoiser.requests == []
    assert record.revealed.tolist() == [0]


def test_no_more_candidates_than_reveals_cost_no_backward() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), INFLUENCE)
    record = first_step(BoE(rho=0.2, tolerance=None), budget=2, denoiser=denoiser)
    assert denoiser.requests == []
    assert record.revealed.tolist() == [0, 8]


def test_several_reveals_a_step_take_the_best_candidates() -> None:
    denoiser = FakeDenoiser(table_of(CONFIDENCES), INFLUENCE)
    record = first_step(BoE(**STEERED), budget=2, denoiser=denoiser)
    assert sorted(record.revealed.tolist()) == [2, 4]


def test_tis_in_the_loop_is_minus_gradient_times_delta() -> None:
    denoiser = tiny_denoiser("bert", 2)
    canvas = random_words(12, [1, 3, 4, 7, 9, 10])
    sampler = BoE(rho=0.5, tolerance=None, alpha=0.0, active="all")
    record = generate(denoiser, canvas, sampler, trajectory=True).items[0].trajectory[0]

    prediction = denoiser.predict(Canvas.of(canvas), record.positions[None], "graph")
    request = GradientRequest(
        record.positions[record.parts["candidate"]][None],
        record.positions[record.parts["probe"]][None],
        torch.arange(12)[None],
        engine="late",
    )
    result = denoiser.entropy_gradient(prediction, request)
    expected = -(result.gradient * result.delta).sum(-1)[0]
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(record.parts["tis"][record.parts["candidate"]], expected)


# --- presets and refusals -------------------------------------------------------------


def test_the_paper_preset_is_the_paper_as_printed() -> None:
    paper = BoE.preset("paper")
    expected = {
        "alpha": 0.0,
        "probes": "masked",
        "active": "candidates",
        "candidates": "confidence",
        "rho": 0.25,
        "tolerance": None,
        "gate": "paper",
        "normalise": "none",
    }
    assert {name: getattr(paper, name) for name in expected} == expected
    assert paper.penalty > 0
    assert paper.floor > 0


@pytest.mark.parametrize("off", ["penalty", "floor"])
def test_a_part_of_a_preset_can_be_switched_off(off: str) -> None:
    without = BoE.preset("paper", **{off: 0.0})
    assert (without.penalty, without.floor) == (0.0, 0.0)
    assert without.changed(penalty=0.2, floor=0.3) == BoE.preset("paper")


def test_a_change_takes_with_it_what_nothing_reads_any_longer() -> None:
    bridged = BoE(active="bridges", bridges=0.5, every=2, between="confidence")
    assert bridged.changed(active="masked", every=1) == BoE(active="masked")
    assert BoE(lookahead=3, close=0.5).changed(lookahead=0) == BoE()


def test_a_change_without_effect_is_refused_all_the_same() -> None:
    with pytest.raises(ValueError, match=r"floor=0\.3 has no effect"):
        BoE.preset("paper", penalty=0.0, floor=0.3)
    with pytest.raises(ValueError, match=r"bridges=0\.5 has no effect"):
        BoE().changed(bridges=0.5)


def test_the_default_preset_is_the_default() -> None:
    assert BoE.preset("default") == BoE()
    assert BoE.preset("default", rho=0.5) == BoE(rho=0.5)


def test_the_papers_active_set_with_its_own_probes_is_refused_for_its_zero_gradient() -> None:
    with pytest.raises(ValueError, match=r"zero-gradient combination.*active='candidates_probes'"):
        BoE(active="candidates", probes="complement")


@pytest.mark.parametrize(
    "field",
    ["candidates", "probes", "active", "bridge_rule", "context", "gate", "normalise", "engine"],
)
def test_an_unknown_choice_is_refused_with_the_choices(field: str) -> None:
    assert field in {f.name for f in fields(BoE)}
    with pytest.raises(ValueError, match=rf"{field} must be one of .*got 'other'"):
        BoE(**{field: "other"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, r"rho must be in \(0, 1\], got 0\.0"),
        ({"rho": 1.5}, r"rho must be in \(0, 1\], got 1\.5"),
        ({"tolerance": -0.1}, r"tolerance must be in \[0, 1\], got -0\.1"),
        ({"tolerance": 2.0}, r"tolerance must be in \[0, 1\], got 2\.0"),
        ({"alpha": -0.5}, r"alpha must be in \[0, 1\], got -0\.5"),
        ({"alpha": math.nan}, r"alpha must be in \[0, 1\], got nan"),
        ({"bridges": 1.1}, r"bridges must be in \[0, 1\], got 1\.1"),
        ({"penalty": -1.0}, r"penalty must be finite and not negative, got -1\.0"),
        ({"penalty": math.inf}, "penalty must be finite and not negative, got inf"),
        ({"floor": math.nan}, "floor must be finite and not negative, got nan"),
        ({"max_probes": 0}, "max_probes must be at least 1, got 0"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"candidates": "all"}, "candidates='all' leaves no probes in their complement"),
        ({"engine": "late"}, r"context='frozen' at alpha = 0\.5 needs engine='replay'"),
        (
            {"engine": "dense", "alpha": 0.0, "active": "bridges"},
            "active='bridges' and probes='masked_minus_self' need engine='replay', "
            "got engine='dense'",
        ),
        (
            {"engine": "late", "alpha": 0.0, "probes": "masked_minus_self"},
            "need engine='replay', got engine='late'",
        ),
    ],
)
def test_contradictory_or_impossible_options_are_refused_by_name(
    options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BoE(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": 0.2}, r"penalty=0\.2 has no effect: it needs floor > 0"),
        ({"floor": 0.3}, r"floor=0\.3 has no effect: it needs penalty > 0, got penalty=0"),
        ({"penalty_anneal": True}, "penalty_anneal=True has no effect: it needs penalty > 0"),
        ({"bridges": 0.5}, r"bridges=0\.5 has no effect: it needs active='bridges', got active="),
        ({"bridge_rule": "random"}, "bridge_rule='random' has no effect: it needs active='brid"),
        ({"between": "confidence"}, "between='confidence' has no effect: it needs every > 1"),
        ({"close": 0.1}, r"close=0\.1 has no effect: it needs lookahead, got lookahead=0"),
        ({"lookahead_tokens": 3}, "lookahead_tokens=3 has no effect: it needs lookahead"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoE(**options)


@pytest.mark.parametrize(
    ("field", "value"),
    [("alpha", "0.5"), ("sure", "0.9"), ("tolerance", True), ("every", 2.0), ("top_k", "4")],
)
def test_what_is_no_number_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{field} must be a (whole )?number, got {value!r}"):
        BoE(**{field: value})
