"""``tensor_parallel``: two processes that share one model answer as one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from published_checkpoints import LLADA, random_state, save_words, write_checkpoint
from rank_processes import ranks_running
from shared_model import answers, lm_of
from toy_lm import PositionDenoiser, toy_lm

from boe.lm_eval.settings import EvaluationSettings


def test_two_processes_evaluate_one_model_as_one_process_does(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", LLADA, random_state(LLADA))
    save_words(model)
    with ranks_running(2, Path(__file__).with_name("shared_model.py"), model, tmp_path):
        lm = lm_of(str(model), None, 1)
        alone = json.loads(json.dumps(answers(lm)))
    shared = json.loads((tmp_path / "found.json").read_text())
    assert shared["texts"] == alone["texts"]
    assert alone["texts"][2] == "", "the prompt that is too long"
    assert len(set(alone["texts"])) == 4
    assert shared["costs"] == alone["costs"]
    (bound, greedy), (expected, expected_greedy) = shared["bounds"][0], alone["bounds"][0]
    assert bound == pytest.approx(expected, rel=1e-9)
    assert greedy == expected_greedy
    written = [path.name for path in tmp_path.glob("costs_*.jsonl")]
    assert written == [f"costs_{lm.fingerprint}_rank0.jsonl"], "one of them writes"


def test_sharing_out_or_compiling_does_not_make_other_answers_of_a_cache() -> None:
    plain = EvaluationSettings(pretrained="m").identity
    assert EvaluationSettings(pretrained="m", compile="network").identity == plain
    assert EvaluationSettings(pretrained="m", tensor_parallel=2).identity == plain
    with pytest.raises(ValueError, match="compile does not go with tensor_parallel"):
        toy_lm(PositionDenoiser(["a"]), compile="network", tensor_parallel=2)
    with pytest.raises(ValueError, match="compile must be one of none, network, graphs, got 'yes'"):
        toy_lm(PositionDenoiser(["a"]), compile="yes")
    with pytest.raises(ValueError, match="needs 2 processes, and there are 1"):
        toy_lm(PositionDenoiser(["a"]), tensor_parallel=2, device="cpu")
