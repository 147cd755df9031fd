"""Whole evaluations by lm-eval: its metrics, results and cache, offline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import CacheHook
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_tiny_bert
from toy_lm import PositionDenoiser, generation, toy_lm

from boe import TokensPerStep, generate
from boe.lm_eval import PROTOCOLS
from boe.lm_eval.costs import read_costs
from boe.lm_eval.model import BoeLM
from boe.tasks.sudoku4.task import Sudoku4Task

LIMIT = 12


def evaluate(lm: BoeLM, task: str, folder: Path = PROTOCOLS, **options: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    wanted = {"limit": LIMIT, "bootstrap_iters": 0, **options}
    return simple_evaluate(model=lm, tasks=[task], task_manager=manager, **wanted)


@pytest.fixture(scope="module")
def sudoku_model() -> Any:
    return BoeLM(pretrained="embedded:sudoku4", device="cpu").loaded


@pytest.fixture
def counted(sudoku_model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes of all forwards of the Sudoku model."""
    sizes: list[int] = []
    denoiser = sudoku_model.denoiser
    predict = denoiser.predict

    def watched(canvas: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(canvas.batch)
        return predict(canvas, *arguments, **options)

    monkeypatch.setattr(denoiser, "predict", watched, raising=True)
    return sizes


def test_an_embedded_denoiser_is_scored_by_lm_eval_as_by_its_own_task(sudoku_model: Any) -> None:
    lm = BoeLM(loaded=sudoku_model, sampler="confidence", tokens_per_step=8, batch_size=4)
    results = evaluate(lm, "boe_sudoku4")
    task = Sudoku4Task("d1")
    items = task.items(LIMIT, seed=0)
    canvases = [item.canvas for item in items]
    own = generate(task.denoiser(), canvases, "confidence", budget=TokensPerStep(8))
    right = [task.judge(item, ids).correct for item, ids in zip(items, own.sequences, strict=True)]
    assert results["results"]["boe_sudoku4"]["exact_match,none"] == sum(right) / LIMIT
    answers = [sample["resps"][0][0] for sample in results["samples"]["boe_sudoku4"]]
    assert answers == [task.answer(ids) for ids in own.sequences]


def test_results_hold_settings_and_mean_costs(sudoku_model: Any, tmp_path: Path) -> None:
    lm = BoeLM(
        loaded=sudoku_model, sampler="boe", tokens_per_step=4, batch_size=8, costs=str(tmp_path)
    )
    config = evaluate(lm, "boe_sudoku4")["config"]
    assert config["boe"]["sampler"] == "boe"
    means = config["boe_costs"]["boe_sudoku4"]
    records = read_costs(tmp_path, lm.fingerprint)
    assert means["requests"] == len(records) == LIMIT
    assert {record.doc for record in records} == set(range(LIMIT))
    assert means["nfe_forward"] == 4.0
    assert means["flop_equiv"] == sum(record.flop_equiv for record in records) / LIMIT
    assert means["flop_equiv"] >= means["nfe_forward"]


def test_a_run_that_was_cut_off_goes_on_where_it_ended(
    sudoku_model: Any, counted: list[int], tmp_path: Path
) -> None:
    options = {"tokens_per_step": 16, "batch_size": 2, "sampler": "confidence"}

    def lm(folder: str) -> BoeLM:
        return BoeLM(loaded=sudoku_model, costs=str(tmp_path / folder), **options)

    whole = evaluate(lm("whole"), "boe_sudoku4")
    assert sum(counted) == LIMIT
    counted.clear()

    cut = lm("cut")
    with pytest.raises(KeyboardInterrupt):
        evaluate(_interrupted(cut, after=6), "boe_sudoku4", use_cache=str(tmp_path / "cache"))
    assert sum(counted) == 8  # the last two were decoded and not taken
    counted.clear()

    rest = evaluate(lm("cut"), "boe_sudoku4", use_cache=str(tmp_path / "cache"))
    assert sum(counted) == LIMIT - 6
    assert rest["results"] == whole["results"]
    records = read_costs(tmp_path / "cut", cut.fingerprint)
    assert sorted(record.doc for record in records) == list(range(LIMIT))
    counted.clear()
    again = evaluate(lm("cut"), "boe_sudoku4", use_cache=str(tmp_path / "cache"))
    assert (counted, again["results"]) == ([], whole["results"])


def _interrupted(lm: BoeLM, after: int) -> BoeLM:
    """``lm``, stopped by the keyboard when it has given so many answers."""
    run = lm.generator.run

    def stopping(prompts: Any) -> Any:
        for number, answer in enumerate(run(prompts)):
            if number == after:
                raise KeyboardInterrupt
            yield answer

    lm.generator.run = stopping  # type: ignore[method-assign]
    return lm


def test_a_cache_of_other_settings_is_refused(sudoku_model: Any, tmp_path: Path) -> None:
    cache = {"use_cache": str(tmp_path / "cache"), "limit": 2}
    evaluate(BoeLM(loaded=sudoku_model, sampler="margin"), "boe_sudoku4", **cache)
    evaluate(BoeLM(loaded=sudoku_model, sampler="margin", batch_size=2), "boe_sudoku4", **cache)
    with pytest.raises(ValueError, match="answers were made with other model_args"):
        evaluate(BoeLM(loaded=sudoku_model, sampler="entropy"), "boe_sudoku4", **cache)


def test_a_cache_of_other_weights_is_refused(tmp_path: Path) -> None:
    model = save_tiny_bert(tmp_path / "model")
    lms = [BoeLM(pretrained=str(model), sampler="confidence", device="cpu") for _ in range(2)]
    weights = load_file(model / "model.safetensors")
    save_file({name: -value for name, value in weights.items()}, model / "model.safetensors")
    other = BoeLM(pretrained=str(model), sampler="confidence", device="cpu")
    assert lms[0].fingerprint == lms[1].fingerprint != other.fingerprint
    cache = CacheHook(None)
    cache.dbdict = {}
    lms[0].set_cache_hook(cache)
    lms[1].set_cache_hook(cache)
    with pytest.raises(ValueError, match="made with other model_args, or by another model"):
        other.set_cache_hook(cache)


def test_repetitions_with_a_cache_must_be_samples(sudoku_model: Any, tmp_path: Path) -> None:
    lm = toy_lm(PositionDenoiser(["a"]))
    lm.generate_until([generation(repeats=2)] * 2)

    class Hook:
        dbdict: dict[str, Any] = {}  # noqa: RUF012

        def add_partial(self, *arguments: Any) -> None: ...

    lm.set_cache_hook(Hook())
    with pytest.raises(ValueError, match="its repetitions would all get the first one's answer"):
        lm.generate_until([generation(repeats=2)] * 2)
    lm.generate_until([generation(repeats=2, do_sample=True, temperature=1.0)] * 2)


CHOICES = """task: toy_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""
TEXTS = """task: toy_text
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: byte_perplexity
"""


def _write_task(folder: Path, template: str, rows: list[dict[str, Any]]) -> None:
    (folder / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "task.yaml").write_text(template.format(file=folder / "rows.json"))


def test_multiple_choice_takes_the_likeliest_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    rows = [
        {"context": "Q", "choices": ["abc", "bca"], "label": 0},
        {"context": "Q", "choices": ["ddd", "abd", "cab"], "label": 1},
        {"context": "Q", "choices": ["abc", "dde"], "label": 1},
    ]
    _write_task(tmp_path, CHOICES, rows)
    lm = toy_lm(PositionDenoiser(["a", "b", "c"]), mc_num=6, batch_size=3)
    results = evaluate(lm, "toy_choice", tmp_path, limit=None)
    assert results["results"]["toy_choice"]["acc,none"] == pytest.approx(2 / 3)
    assert results["config"]["boe_costs"]["toy_choice"]["requests"] == 7


def test_perplexity_of_whole_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    _write_task(tmp_path, TEXTS, [{"text": "abcd"}, {"text": "ba"}])
    denoiser = PositionDenoiser([], start=0)  # all 14 other tokens equally likely
    results = evaluate(toy_lm(denoiser, mc_num=4), "toy_text", tmp_path, limit=None)
    value = results["results"]["toy_text"]["byte_perplexity,none"]
    assert math.log(value) == pytest.approx(math.log(denoiser.facts.vocab_size - 1), rel=1e-9)


def test_chat_templates_and_an_opened_answer_reach_the_model(sudoku_model: Any) -> None:
    lm = toy_lm(PositionDenoiser(["a"] * 4, start=8), eos=[], gen_length=4)
    lm.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    results = evaluate(lm, "boe_sudoku4", limit=1, apply_chat_template=True)
    (sample,) = results["samples"]["boe_sudoku4"]
    assert sample["arguments"][0][0].startswith("u:")
    assert sample["arguments"][0][0].endswith("=a:")
    assert lm.chat_template(True) == lm.tokenizer.chat_template
    with pytest.raises(ValueError, match="no named chat templates, got 'tool'"):
        lm.chat_template("tool")
