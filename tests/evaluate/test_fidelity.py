"""Fidelity: true drops, rankings, and what is reported of them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from fake_task import FakeTask
from tiny_checkpoints import save_tiny_bert
from tiny_models import MASK_ID, random_words, tiny_denoiser

from boe.canvas import Canvas
from boe.decoding import generate
from boe.denoisers.transformers_model import TransformersDenoiser
from boe.evaluate import RecordStore
from boe.evaluate.fidelity import (
    Fidelity,
    FidelityStudy,
    fidelity_from_json,
    measure_fidelity,
)
from boe.evaluate.fidelity.canvases import decoded_states, masked_text
from boe.evaluate.fidelity.ranks import ranks, regret, spearman
from boe.evaluate.fidelity.report import (
    fidelity_csv,
    fidelity_table,
    plot_fidelity,
    theorem_table,
)
from boe.evaluate.fidelity.scores import candidate_chooser, first_steps, scoring_sampler
from boe.evaluate.fidelity.truth import TRUTHS, TruthOptions, true_drops
from boe_kernels import entropy_stats

MASKS = [2, 3, 5, 7, 8, 10, 11, 13]
CANDIDATES = [3, 7, 10]
EVERYTHING = TruthOptions(mass=1.0, max_tokens=40, grid=5)


@cache
def model() -> TransformersDenoiser:
    return tiny_denoiser("bert", layers=2, suppressed_ids=(0, 1, 2))


def canvas(seed: int = 0) -> torch.Tensor:
    return random_words(15, MASKS, seed)


def entropy_of(ids: torch.Tensor) -> dict[int, float]:
    """Entropy by masked position, from a forward of its own."""
    positions = (ids == MASK_ID).nonzero().flatten().unsqueeze(0)
    logits = model().predict(Canvas(ids.unsqueeze(0), (len(ids),)), positions).logits
    values = entropy_stats(logits).entropy[0].tolist()
    return dict(zip(positions[0].tolist(), values, strict=True))


# --- the truth ------------------------------------------------------------------------


def test_discrete_drops_are_expectations_over_every_token() -> None:
    truth = true_drops(model(), canvas(), CANDIDATES, EVERYTHING)
    before = entropy_of(canvas())
    positions = torch.tensor([CANDIDATES])
    logits = model().predict(Canvas(canvas().unsqueeze(0), (15,)), positions).logits[0]
    for number, position in enumerate(CANDIDATES):
        expected = {"probes": 0.0, "others": 0.0}
        for token, p in enumerate(logits[number].softmax(dim=-1).tolist()):
            if p == 0.0:
                continue
            ids = canvas()
            ids[position] = token
            after = entropy_of(ids)
            for name, left_out in (("probes", set(CANDIDATES)), ("others", {position})):
                fall = sum(before[j] - after[j] for j in after if j not in left_out)
                expected[name] += p * fall
        assert float(truth.drops["discrete_probes"][number]) == pytest.approx(expected["probes"])
        assert float(truth.drops["discrete_others"][number]) == pytest.approx(expected["others"])
    assert truth.mass.tolist() == pytest.approx([1.0] * 3)


def test_relaxed_drops_are_those_of_the_soft_embedding_written_alone() -> None:
    truth = true_drops(model(), canvas(), CANDIDATES, EVERYTHING)
    denoiser, before = model(), entropy_of(canvas())
    table = denoiser.embedding_table
    one = Canvas(canvas().unsqueeze(0), (15,))
    for number, position in enumerate(CANDIDATES):
        logits = denoiser.predict(one, torch.tensor([[position]])).logits[0, 0]
        embeds = denoiser.embed(one.ids).clone()
        embeds[0, position] += logits.softmax(dim=-1) @ table - table[MASK_ID]
        logits = denoiser.suppress(denoiser.model(inputs_embeds=embeds).logits[0])
        after = entropy_stats(logits).entropy
        expected = sum(before[j] - float(after[j]) for j in MASKS if j not in CANDIDATES)
        assert float(truth.drops["relaxed_probes"][number]) == pytest.approx(expected)


def test_the_first_order_is_boes_score_with_every_row_active() -> None:
    truth = true_drops(model(), canvas(), CANDIDATES, EVERYTHING)
    sampler = scoring_sampler("boe:alpha=0,active=all", "confidence", 0.375)
    (step,) = first_steps(model(), [canvas()], sampler, [0])
    chosen = [k for k, flag in step.parts["candidate"].items() if flag]
    again = true_drops(model(), canvas(), chosen, EVERYTHING)
    assert again.first_order.tolist() == pytest.approx([step.scores[k] for k in chosen])
    assert len(truth.first_order) == 3


def test_theorem_3_1_holds_and_its_midpoint_is_a_better_rule_where_it_is_smooth() -> None:
    """A model near its mask embedding is smooth: the remainder shrinks with the square."""
    denoiser = tiny_denoiser("bert", layers=1, suppressed_ids=(0, 1, 2))
    embedding = denoiser.model.get_input_embeddings().weight
    with torch.no_grad():
        embedding.copy_(embedding[MASK_ID] + 0.05 * (embedding - embedding[MASK_ID]))
    truth = true_drops(denoiser, canvas(), CANDIDATES, TruthOptions(grid=33))
    drop = truth.drops["relaxed_probes"]
    remainder = (drop - truth.first_order).abs()
    assert bool((remainder <= truth.curvature / 2.0 * 1.05).all())
    assert bool(((drop - truth.midpoint).abs() < remainder / 4.0).all())


def test_enumeration_stops_at_the_mass_or_the_cap() -> None:
    whole = true_drops(model(), canvas(), CANDIDATES, EVERYTHING)
    some = true_drops(model(), canvas(), CANDIDATES, replace(EVERYTHING, mass=0.5))
    few = true_drops(model(), canvas(), CANDIDATES, replace(EVERYTHING, max_tokens=2))
    assert bool(((some.mass >= 0.5) & (some.mass < 1.0)).all())
    assert bool((few.mass < some.mass.clamp_min(0.99)).all())
    assert few.forwards == 3 * 2 + 3 * 5 < some.forwards < whole.forwards


def test_the_size_of_a_batch_changes_no_truth() -> None:
    whole = true_drops(model(), canvas(), CANDIDATES, EVERYTHING)
    parts = true_drops(model(), canvas(), CANDIDATES, replace(EVERYTHING, chunk=4))
    for name in TRUTHS:
        assert torch.allclose(whole.drops[name], parts.drops[name], rtol=1e-9, atol=1e-9)


def test_what_has_no_truth_is_refused() -> None:
    for candidates in ([], [0], [2, 2, 0]):
        with pytest.raises(ValueError, match="candidates must be masked positions"):
            true_drops(model(), canvas(), candidates)
    with pytest.raises(ValueError, match="there are no probes"):
        true_drops(model(), canvas(), MASKS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mass": 0.0}, "mass must be"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"grid": 4}, "grid must be odd and at least 3, got 4"),
        ({"chunk": 0}, "chunk must be"),
    ],
)
def test_options_of_the_truth_are_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TruthOptions(**options)  # type: ignore[arg-type]


# --- rankings -------------------------------------------------------------------------


def test_equal_values_share_their_ranks() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_rank_correlation_follows_order_alone() -> None:
    a = torch.tensor([0.1, 0.4, 0.2, 0.9])
    assert spearman(a, a.exp() * 7) == pytest.approx(1.0)
    assert spearman(a, -a) == pytest.approx(-1.0)
    assert spearman(a, torch.ones(4)) == 0.0
    # 1 − 6·Σd²/(n(n² − 1)) with d = (0, 1, 1, 0)
    assert spearman(a, torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx(1 - 6 * 2 / 60)


def test_regret_is_0_for_the_best_pick_and_1_for_the_average_one() -> None:
    truth = torch.tensor([1.0, 2.0, 6.0])
    assert regret(torch.tensor([0.0, 1.0, 5.0]), truth) == 0.0
    assert regret(torch.tensor([9.0, 1.0, 5.0]), truth) == pytest.approx(5 / 3)
    assert regret(torch.tensor([1.0, 1.0, 1.0]), torch.ones(3)) == 0.0


def test_all_scores_have_the_same_candidates() -> None:
    chooser = candidate_chooser("entropy", 0.5)
    (step,) = first_steps(model(), [canvas()], chooser, [0])
    chosen = {k for k, flag in step.parts["candidate"].items() if flag}
    assert len(chosen) == 4
    for spec in ("boe:tolerance=0.0,rho=0.1", "boe:preset=paper", "lookahead:rho=1.0"):
        (step,) = first_steps(model(), [canvas()], scoring_sampler(spec, "entropy", 0.5), [0])
        assert {k for k, score in step.scores.items() if score > -float("inf")} == chosen


def test_the_cost_of_a_score_is_that_of_its_step_alone() -> None:
    (greedy,) = first_steps(model(), [canvas()], scoring_sampler("confidence", "all", 0.5), [0])
    assert greedy.cost == 1.0
    sampler = scoring_sampler("boe:active=all", "confidence", 0.5)
    (dense,) = first_steps(model(), [canvas()], sampler, [0])
    assert dense.cost == 3.0


@pytest.mark.parametrize("spec", ["mdlm", "boe+eb:gamma=0.1"])
def test_only_rankings_can_be_judged(spec: str) -> None:
    with pytest.raises(ValueError, match="scores must be samplers that rank positions"):
        scoring_sampler(spec, "confidence", 0.5)


# --- canvases -------------------------------------------------------------------------


def test_decoded_states_are_those_that_a_decode_passes() -> None:
    (state,) = decoded_states(model(), [canvas()], 0.5, "margin")
    assert int((state == MASK_ID).sum()) == 4
    passed = []
    generate(model(), canvas(), "margin", on_step=lambda k, item: passed.append(item.ids.clone()))
    assert any(torch.equal(state, ids) for ids in passed)
    (whole,) = decoded_states(model(), [canvas()], 1.0)
    assert torch.equal(whole, canvas())


def test_masked_text_keeps_special_tokens_and_masks_the_share(tmp_path: Path) -> None:
    from boe.denoisers.loading import load_model

    loaded = load_model(save_tiny_bert(tmp_path / "model"))
    mask_id = loaded.denoiser.facts.mask_id
    text = "the cat sat on a mat the dog ran to a red house " * 3
    made = masked_text(loaded.tokenizer, mask_id, text, 0.25, count=3, length=14)
    assert [len(ids) for ids in made] == [14, 14, 14]
    assert {(int(ids[0]), int(ids[-1])) for ids in made} == {(2, 3)}
    assert [int((ids == mask_id).sum()) for ids in made] == [3, 3, 3]
    assert not torch.equal(made[0] == mask_id, made[1] == mask_id)
    with pytest.raises(ValueError, match="text must have at least 38 tokens"):
        masked_text(loaded.tokenizer, mask_id, "the cat", 0.25, count=1, length=40)


# --- the whole ------------------------------------------------------------------------

STUDY = FidelityStudy(
    "toy",
    scores=("confidence", "boe:alpha=0.5,active=all,gate=paper", "lookahead:tokens=37"),
    fractions=(0.5, 1.0),
    canvases=2,
    rho=0.6,
    truth=EVERYTHING,
)


def canvases(fraction: float) -> list[torch.Tensor]:
    return decoded_states(model(), [canvas(0), canvas(1)], fraction)


@cache
def measured() -> Fidelity:
    return measure_fidelity(STUDY, model(), canvases)


def test_an_exact_lookahead_ranks_as_the_truth_does() -> None:
    exact = [s for s in measured().scores if s.score == "lookahead:tokens=37"]
    assert [s.fraction for s in exact] == [0.5, 1.0]
    for score in exact:
        assert score.spearman["discrete_others"] == pytest.approx(1.0)
        assert score.regret["discrete_others"] == pytest.approx(0.0)


def test_a_gated_score_is_shown_beside_its_tis() -> None:
    names = {score.score for score in measured().scores}
    assert names >= set(STUDY.scores)
    assert "boe:alpha=0.5,active=all,gate=paper [tis]" in names
    bare = measure_fidelity(
        replace(STUDY, scores=("boe",), fractions=(1.0,)), model(), lambda fraction: [canvas()]
    )
    assert [score.score for score in bare.scores] == ["boe"], "it ranks by TIS and nothing else"


def test_fidelity_survives_json() -> None:
    stored = json.loads(json.dumps(measured().as_json(), allow_nan=False))
    assert stored["schema"] == "boe/fidelity/1"
    assert fidelity_from_json(stored) == measured()
    with pytest.raises(ValueError, match="schema must be boe/fidelity/1"):
        fidelity_from_json({"schema": "boe/compare/2"})


def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, seen = tmp_path / "r.jsonl", []

    def stop(fraction: float) -> None:
        seen.append(fraction)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with RecordStore(path) as store:
        part = measure_fidelity(STUDY, model(), canvases, store=store, on_canvas=stop)
    assert not part.complete
    assert {score.canvases for score in part.scores if score.fraction == 1.0} == {1}
    lines = len(path.read_text().splitlines())
    with RecordStore(path) as store:
        whole = measure_fidelity(STUDY, model(), canvases, store=store)
    assert whole == measured()
    assert len(path.read_text().splitlines()) == lines + 1


def test_a_canvas_without_a_choice_is_left_out() -> None:
    few = random_words(15, [3, 7, 9])
    fidelity = measure_fidelity(STUDY, model(), lambda fraction: [few, canvas()])
    assert {score.canvases for score in fidelity.scores} == {1}


def test_tables_and_figure_show_every_score(tmp_path: Path) -> None:
    table = fidelity_table(measured())
    assert [row[0].strip("`") for row in table.rows] == [
        "confidence",
        "boe:alpha=0.5,active=all,gate=paper",
        "boe:alpha=0.5,active=all,gate=paper [tis]",
        "lookahead:tokens=37",
    ]
    assert len(table.columns) == 2 + 2 * len(STUDY.fractions)
    checks = theorem_table(measured()).rows
    assert [row[0] for row in checks] == ["50%", "100%"]
    assert fidelity_csv(measured()).count("\n") == 1 + len(measured().scores) * len(TRUTHS)
    plot_fidelity(measured(), tmp_path / "f.svg")
    assert (tmp_path / "f.svg").stat().st_size > 1000


def test_a_denoiser_that_cannot_be_run_from_embeddings_is_refused() -> None:
    with pytest.raises(TypeError, match="runs from embeddings, got FakeDenoiser"):
        measure_fidelity(STUDY, FakeTask().denoiser(), canvases)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": ()}, "scores must be different, at least one"),
        ({"scores": ("boe", "boe")}, "scores must be different"),
        ({"scores": ("klass",)}, "scores must be samplers that rank positions"),
        ({"fractions": (0.0,)}, r"fractions must be in \(0, 1\]"),
        ({"canvases": 0}, "canvases must be at least 1"),
        ({"rho": 0.0}, r"rho must be in \(0, 1\]"),
        ({"candidates": "best"}, "candidates must be one of"),
    ],
)
def test_a_fidelity_study_that_makes_no_sense_is_refused(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FidelityStudy("toy", **changes)
