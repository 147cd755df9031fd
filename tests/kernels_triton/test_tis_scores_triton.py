"""Token Influence Scores by the Triton kernel: what is asked of every path."""

from __future__ import annotations

import pytest
import test_tis_scores as every_path
import torch
from test_tis_scores import CANDIDATES, LAYOUTS, assert_follow_definition, step

from boe_kernels._triton import recording
from boe_kernels.tis_scores import GATES, NORMALISATIONS
from boe_kernels.tis_scores import triton as kernels
from boe_kernels.tis_scores.triton import ScoreLaunch

pytestmark = pytest.mark.usefixtures("poisoned_allocations", "interpreted")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks along candidates, width and positions."""
    launch = ScoreLaunch(warps=1, block_candidates=2, block_width=8, block_positions=4)
    for architecture in kernels.LAUNCH:
        monkeypatch.setitem(kernels.LAUNCH, architecture, launch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("gate", GATES)
def test_the_scores_follow_their_definition(gate, normalise, dtype):
    every_path.test_the_scores_follow_their_definition(gate, normalise, dtype, "triton")


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("candidates", CANDIDATES)
def test_any_set_of_candidates_is_scored(candidates, normalise):
    every_path.test_any_set_of_candidates_is_scored(candidates, normalise, "triton")


def test_the_committed_launch_parameters_score_the_same(monkeypatch):
    monkeypatch.undo()
    assert kernels.LAUNCH["sm_80"].block_width > every_path.WIDTH
    assert_follow_definition(
        step(), "triton", gate="positive", normalise="zscore", penalty=0.4, floor=2.5
    )


def test_an_annealed_penalty_shrinks_with_its_weight_too():
    every_path.test_an_annealed_penalty_shrinks_with_its_weight_too("triton")


@pytest.mark.parametrize("normalise", ["zscore", "minmax"])
def test_equal_influences_normalise_to_zero(normalise):
    every_path.test_equal_influences_normalise_to_zero(normalise, "triton")


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_padding_may_hold_anything(normalise):
    every_path.test_padding_may_hold_anything(normalise, "triton")


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_nan_is_not_hidden_and_stays_in_its_canvas(normalise):
    every_path.test_nan_is_not_hidden_and_stays_in_its_canvas(normalise, "triton")


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_a_canvas_is_the_same_alone_as_in_the_batch(normalise):
    every_path.test_a_canvas_is_the_same_alone_as_in_the_batch(normalise, "triton")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_strided_argument_gives_the_same_as_its_contiguous_copy(name):
    every_path.test_a_strided_argument_gives_the_same_as_its_contiguous_copy(name, "triton")


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_the_whole_batch_is_one_launch(normalise):
    with recording("sm_90") as launches:
        step()("triton", gate="paper", penalty=0.1, floor=1.0, normalise=normalise)
    assert len(launches) == 1


def test_repeated_runs_give_the_same_bits():
    options = {"gate": "positive", "normalise": "zscore", "penalty": 0.4, "floor": 2.5}
    first = step()("triton", **options)
    for _ in range(2):
        for again, before in zip(step()("triton", **options), first, strict=True):
            assert torch.equal(again, before)
