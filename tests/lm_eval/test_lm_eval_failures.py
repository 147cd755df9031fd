"""Requests that fail: named, counted, never taken for answers, and the others kept."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.model import CachingLM
from torch import Tensor
from toy_lm import ID, PositionDenoiser, continuation, generation, toy_lm, whole

from boe.canvas import Canvas
from boe.denoisers import Prediction
from boe.lm_eval.__main__ import _settings_of
from boe.lm_eval.costs import read_costs, summary_lines
from boe.lm_eval.failures import FailedRequests, UnusablePrompt

STORY = ["a", "b\n", "Q", ":a", "c", "<eos>", "d", "d"]
POISON, HEAVY = ID["d"], ID["c"]


class FragileDenoiser(PositionDenoiser):
    """NaN for canvases that begin with d; no memory for those that begin with c."""

    def predict(self, canvas: Canvas, positions: Tensor, keep: str = "nothing") -> Prediction:
        if bool((canvas.ids[:, 0] == HEAVY).any()):
            raise torch.OutOfMemoryError("no memory")
        prediction = super().predict(canvas, positions, keep)
        prediction.logits[canvas.ids[:, 0] == POISON] = torch.nan
        return prediction


def fragile_lm(**arguments: Any) -> Any:
    return toy_lm(FragileDenoiser(STORY, max_length=12), batch_size=4, **arguments)


REQUESTS = [
    generation("Q", doc=0),
    generation("d", doc=1),
    generation("abcde", doc=2),
    generation("c", doc=3),
    generation("[MASK]", doc=4),
    generation("e", doc=5),
]


def test_kept_failures_are_empty_answers_that_are_named_and_cost_what_they_cost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    lm = fragile_lm(failures="keep")
    assert lm.generate_until(REQUESTS) == ["ab\nQ:ac", "", "", "", "", "ab\nQ:ac"]
    errors = {record.doc: record.error for record in lm.costs.records}
    assert errors[0] is None
    assert errors[5] is None
    assert errors[1].startswith("UnusableLogits: ") or "NaN" in errors[1]
    assert "the 12 positions of the model" in errors[2]
    assert errors[3] == "OutOfMemoryError: no memory"
    assert "holds the mask token" in errors[4]
    for doc in (1, 2, 3, 4):
        assert any(f"toy/{doc} failed" in message for message in caplog.messages)


def test_the_answers_beside_a_failure_are_those_without_it() -> None:
    alone = fragile_lm(temperature=1.0).generate_until([REQUESTS[0], REQUESTS[5]])
    beside = fragile_lm(temperature=1.0, failures="keep").generate_until(REQUESTS)
    assert [beside[0], beside[5]] == alone


def test_means_are_those_of_answers_and_failures_are_counted(tmp_path: Path) -> None:
    lm = fragile_lm(failures="keep", costs=str(tmp_path))
    lm.generate_until(REQUESTS)
    info = lm.get_model_info()
    means = info["boe_costs"]["toy"]
    assert (means["requests"], means["failed"], means["nfe_forward"]) == (2, 4, 6)
    assert sorted(failure["doc"] for failure in info["boe_failures"]) == [1, 2, 3, 4]
    json.dumps(info)
    lines = summary_lines(str(tmp_path), lm.fingerprint)
    assert any(line.startswith("|toy|2|4|6.00|") for line in lines)
    assert "failed: toy/3: OutOfMemoryError: no memory" in lines
    assert lines[-1].startswith("4 requests failed: their answers are empty")


def test_unless_failures_are_kept_the_first_one_ends_the_run_and_its_batch_is_kept(
    tmp_path: Path,
) -> None:
    lm = fragile_lm(costs=str(tmp_path))
    cached = CachingLM(lm, str(tmp_path / "cache.db"))
    with pytest.raises(ValueError, match="NaN") as caught:
        cached.generate_until([REQUESTS[0], REQUESTS[1], REQUESTS[5]])
    assert caught.value.__notes__ == ["while answering generate_until request toy/1"]
    records = read_costs(tmp_path, lm.fingerprint)
    assert {record.doc: record.error is None for record in records} == {0: True, 1: False, 5: True}
    denoiser = FragileDenoiser(STORY, max_length=12)
    again = toy_lm(denoiser, batch_size=4)
    rest = CachingLM(again, str(tmp_path / "cache.db"))
    assert rest.generate_until([REQUESTS[0], REQUESTS[5]]) == ["ab\nQ:ac"] * 2
    assert denoiser.canvases == []


def test_a_failure_is_not_taken_from_the_cache_but_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, costs = str(tmp_path / "cache.db"), str(tmp_path)
    first = CachingLM(fragile_lm(failures="keep", costs=costs), place)
    assert first.generate_until(REQUESTS[:2]) == ["ab\nQ:ac", ""]
    monkeypatch.setattr(FragileDenoiser, "predict", PositionDenoiser.predict)
    healed = FragileDenoiser(STORY, max_length=12)
    lm = toy_lm(healed, batch_size=4, failures="keep", costs=costs)
    second = CachingLM(lm, place)
    assert second.generate_until(REQUESTS[:2]) == ["ab\nQ:ac", "ab\nQ:ac"]
    assert {canvas.batch for canvas in healed.canvases} == {1}, "the other answer was there"
    assert lm.get_model_info()["boe_failures"] == []


def test_no_number_stands_for_a_likelihood_that_failed() -> None:
    requests = [continuation("a", "b", doc=0), continuation("d", "b", doc=1)]
    lm = fragile_lm(failures="keep", mc_num=2)
    with pytest.raises(
        FailedRequests, match=r"1 likelihoods could not .* toy/1: ValueError: .*NaN"
    ):
        lm.loglikelihood([*requests, continuation("e", "b", doc=2)])
    errors = {record.doc: record.error for record in lm.costs.records}
    assert errors[0] is errors[2] is None, "the others are computed first"
    with pytest.raises(ValueError, match="NaN") as caught:
        fragile_lm(mc_num=2).loglikelihood(requests)
    assert caught.value.__notes__ == ["while scoring loglikelihood request toy/1"]


def test_a_text_without_memory_is_named() -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        fragile_lm(mc_num=2).loglikelihood_rolling([whole("cab")])
    assert caught.value.__notes__ == ["while scoring loglikelihood_rolling request toy/0"]


def test_a_prompt_that_holds_the_mask_is_refused_with_its_name() -> None:
    with pytest.raises(UnusablePrompt, match="toy/4: the text holds the mask token"):
        fragile_lm().generate_until(REQUESTS[3:])


def test_an_argument_that_no_request_can_have_is_no_failure_of_one() -> None:
    with pytest.raises(ValueError, match="'num_beams' is not supported"):
        fragile_lm(failures="keep").generate_until([generation(num_beams=2)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"failures": "ignore"}, "failures must be one of raise, keep, got 'ignore'"),
        (
            {"failures": "keep", "sampler": "random+smc:particles=2,every=2"},
            "does not go with particles",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fragile_lm(**arguments)


def test_the_command_keeps_failures_only_where_it_can_write_them_down() -> None:
    given = SimpleNamespace(
        model_args={"pretrained": "x", "failures": "keep"},
        device="cpu",
        config=None,
        output_path=None,
    )
    with pytest.raises(ValueError, match="needs a place for the records that name them"):
        _settings_of(given)  # type: ignore[arg-type]
    given.output_path = "results"
    assert _settings_of(given).costs == "results/x"  # type: ignore[arg-type]
