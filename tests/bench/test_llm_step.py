"""The step at the shapes of 8B models: it runs at a toy width, and counts rightly."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from bench import llm_step
from bench.__main__ import main
from bench.llm_step import Case, Rivals, Shape, build_denoiser, expected_memory
from bench.results import Measurement, Quantiles
from bench.session import Options
from boe.denoisers.base import GradientRequest

CPU = torch.device("cpu")
TOY = Case(Shape("dream-7b", 64), 2, 32, prompt=96, generated=32)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    build_denoiser.cache_clear()


def test_a_quick_run_stores_times_ratios_and_floors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.csv"
    main(["llm_step", "--quick", "--threads", "1", "--device", "cpu", "--output", str(output)])
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} == {"time_ms", "ratio", "over_confidence", "floor"}
    assert {'"llada-8b"', '"dream-7b"'} <= {
        row["config"].split(":")[1].split(",")[0] for row in rows
    }
    printed = capsys.readouterr().out
    assert "memory expected of a BoE step of llada-8b, batch 8, L = 1152" in printed


def test_without_a_gpu_no_case_claims_the_real_width() -> None:
    chosen = llm_step.cases(Options("llm_step", CPU, quick=False, output=Path("unused")))
    assert {case.shape.scale for case in chosen} == {16}
    assert {case.batch for case in chosen} == {1, 4, 16}
    assert {case.length for case in chosen} == {1152}


@pytest.mark.parametrize("model", ["llada-8b", "dream-7b"])
def test_the_real_shapes_have_the_published_number_of_parameters(model: str) -> None:
    billions = {"llada-8b": 8.02, "dream-7b": 7.62}[model]
    weights = expected_memory(Shape(model), 1, 1, 1, item=1).weights
    assert weights / 1e9 == pytest.approx(billions, abs=0.01)


def test_the_floor_is_that_of_the_rows_that_the_step_made() -> None:
    rivals = Rivals(TOY, build_denoiser(TOY.shape, CPU))
    calls = rivals.calls()
    shares = {
        name: llm_step.active_share(calls[name](), name != "dense")
        for name in ("confidence", "boe ρ=0.25", "boe max_probes=8", "boe active=all", "dense")
    }
    assert shares["confidence"] is None
    assert shares["boe active=all"] == shares["dense"] == 1.0
    # Dream's logits are shifted: each probe is read in the row before it, which may be one
    # of the candidates' rows.
    masked = TOY.masks / TOY.length
    assert masked / 2 < shares["boe ρ=0.25"] <= masked + 1 / TOY.length
    assert shares["boe max_probes=8"] <= 24 / TOY.length


@pytest.mark.parametrize("model", ["llada-8b", "dream-7b"])
def test_the_expected_graph_is_what_autograd_saves(model: str) -> None:
    case = Case(Shape(model, 32), 2, 32, prompt=96, generated=32)
    rivals = Rivals(case, build_denoiser(case.shape, CPU))
    denoiser = rivals.denoiser
    prediction = denoiser.predict(rivals.canvas, rivals.positions, "keys_values")
    known = {parameter.data_ptr() for parameter in denoiser.model.parameters()}
    known |= {t.data_ptr() for layer in prediction.state.layers for t in (layer.k, layer.v)}
    saved: dict[int, int] = {}
    kept = []

    def note(x: torch.Tensor) -> torch.Tensor:
        place = x.untyped_storage().data_ptr()
        if place not in known:
            saved[place] = x.untyped_storage().nbytes()
            kept.append(x)  # so that no other tensor gets its place
        return x

    positions = rivals.positions
    request = GradientRequest(positions[:, :8], positions[:, 8:], positions)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        denoiser.entropy_gradient(prediction, request)
    expected = expected_memory(case.shape, case.batch, case.length, case.masks, item=4)
    # Two layers: the last norm and the embeddings are not yet negligible.
    assert sum(saved.values()) == pytest.approx(expected.graph, rel=0.15)


def test_a_step_of_an_8b_model_at_batch_8_should_fit_80_gigabytes() -> None:
    for model in llm_step.MODELS:
        assert expected_memory(Shape(model), 8, 1152, 128).total < 40 * 2**30


def test_no_time_is_reported_for_a_wrong_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = build_denoiser(TOY.shape, CPU)
    right = denoiser.entropy_gradient

    def wrong(prediction, request):
        found = right(prediction, request)
        found.gradient.mul_(1.01 if request.engine == "replay" else 1.0)
        return found

    llm_step.verify(denoiser)
    monkeypatch.setattr(denoiser, "entropy_gradient", wrong)
    with pytest.raises(llm_step.WrongResultError, match="against late binding"):
        llm_step.verify(denoiser)


def test_a_step_without_memory_is_told_and_the_others_are_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    denoiser = build_denoiser(TOY.shape, CPU)
    right = denoiser.predict

    def cramped(canvas, positions, keep="nothing"):
        if keep == "dense_graph" and canvas.batch > 1:
            raise torch.OutOfMemoryError("no memory")
        return right(canvas, positions, keep)

    monkeypatch.setattr(denoiser, "predict", cramped)
    monkeypatch.setattr(llm_step, "build_denoiser", lambda shape, device: denoiser)
    options = Options("llm_step", CPU, quick=True, output=Path("unused"))
    rows = list(llm_step.measure(TOY, options))
    told = [row for row in rows if row.value is None]
    assert [(row.provider, row.note) for row in told] == [("dense", "out of memory")]
    assert {row.provider for row in rows if row.metric == "time_ms"} >= {"forward", "boe ρ=0.25"}


def test_the_aim_is_a_ratio_to_the_confidence_step() -> None:
    config = Case(Shape("llada-8b"), 4, 128).config
    value = Quantiles.of([1.2])
    provider = "boe ρ=0.25/confidence"
    row = Measurement("llm_step", provider, "step", "bfloat16", config, "over_confidence", value)
    found = llm_step.targets([row])
    assert [target.missed for target in found] == [True, False, False, False]
