"""Counting what a step holds without memory: the count is what a real step allocates."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from bench import llm_memory, llm_step
from bench.__main__ import main
from bench.llm_step import Case, Rivals, Shape, build_denoiser
from bench.phantom_memory import PhantomMemory
from bench.results import RESULTS
from bench.timing import peak_extra_memory
from boe_kernels import _native_library

CPU = torch.device("cpu")
MIB = 2**20
# What the profiler itself and a handful of whole numbers differ by.
SLACK = 16 * 2**10


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    build_denoiser.cache_clear()


@pytest.mark.parametrize("step", llm_memory.STEPS)
@pytest.mark.parametrize("model", llm_step.MODELS)
def test_a_count_without_memory_is_what_a_real_step_allocates(
    model: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real step must take the path that is counted.
    monkeypatch.setattr(_native_library, "WHY_NOT", "switched off")
    case = Case(Shape(model, 32), 3, 48, prompt=144, generated=48)
    spec = llm_memory.STEPS[step]
    denoiser = build_denoiser(case.shape, CPU)
    real = peak_extra_memory(Rivals(case, denoiser).step(spec), CPU) * MIB
    options = {"largest_real": 1 << 14, "architecture": None}
    counted = llm_memory.count(case, spec, torch.float32, **options)
    weights = sum(parameter.nbytes for parameter in denoiser.model.parameters())
    assert counted.held_at_peak["weights"] == weights
    # Below it by what PyTorch's kernels allocate inside themselves, and by no more.
    assert 0.95 * real <= counted.peak - weights <= real + SLACK


def test_a_replay_counts_under_the_gradient_and_what_it_attends_to_under_the_forward() -> None:
    case = Case(Shape("llada-8b", 32), 2, 32, prompt=96, generated=32)
    options = {"largest_real": 1 << 13, "architecture": None}
    found = llm_memory.count(case, llm_memory.STEPS["boe"], torch.float32, **options)
    due = llm_step.expected_memory(case.shape, 2, 128, 32, item=4)
    assert found.held_at_peak["gradient"] >= due.graph * 0.85
    assert found.held_at_peak["forward"] >= due.keys_values
    greedy = llm_memory.count(case, "confidence", torch.float32, **options)
    assert greedy.held_at_peak["gradient"] == 0
    assert greedy.peak < found.peak


def test_what_is_large_takes_no_memory_and_what_is_freed_no_longer_counts() -> None:
    with PhantomMemory(largest_real=1 << 10) as memory:
        with memory.stage("first"):
            x = torch.zeros(2**20, 2**20)
            view = x[: 2**10]
        assert memory.held["first"] == 2**42
        del x
        assert memory.held["first"] == 2**42, "a view keeps it"
        del view
        assert memory.held["first"] == 0
        y = torch.ones(2**10, 2**10).add(1)
        assert memory.held["other"] == y.nbytes
    assert memory.peak == memory.held_at_peak["first"] == 2**42


def test_what_autograd_saves_is_held_until_the_backward_is_done() -> None:
    with PhantomMemory(largest_real=1 << 10) as memory:
        x = torch.ones(2**10, 2**10, requires_grad=True)
        y = functional.silu(x.mul(2.0)).sum()
        assert memory.held["other"] >= 2 * x.nbytes
        (grad,) = torch.autograd.grad(y, x)
        assert grad.shape == x.shape
        del y, grad
        assert memory.held["other"] < 1.01 * x.nbytes


def test_small_tensors_are_real_and_what_is_made_of_phantoms_is_made_up_in_range() -> None:
    with PhantomMemory(largest_real=1 << 10) as memory:
        ids = torch.tensor([3, 1, 2])
        assert (ids + 1).tolist() == [4, 2, 3]
        assert ids.sort().values.tolist() == [1, 2, 3]
        large = torch.zeros(2**12, 8)
        table = large.index_select(0, ids)
        assert table.shape == (3, 8)
        assert bool(((large.sum(dim=0) >= 0) & (large.sum(dim=0) <= 1)).all())
        assert large.argmax().item() == 0
        ids.copy_(large[:3, 0])
        assert ids.tolist() == [3, 1, 2]
    assert memory.peak > large.nbytes


def test_the_command_stores_counts_of_every_step_with_their_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.csv"
    main(["llm_memory", "--quick", "--output", str(output)])
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} == {llm_memory.METRIC}
    assert all("not measured" in row["note"] for row in rows)
    sizes = {(row["config"], row["provider"]): float(row["value"]) for row in rows}
    for (config, provider), size in sizes.items():
        if ": " not in provider:
            parts = sum(sizes[config, f"{provider}: {part}"] for part in llm_memory.PARTS)
            assert size == pytest.approx(parts, rel=1e-5)
    assert "boe active=all" in capsys.readouterr().out


def test_the_recorded_count_says_that_a_step_at_batch_8_fits_80_gigabytes() -> None:
    with (RESULTS / "llm_memory-cpu.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["provider"] in llm_memory.STEPS]
    for model in llm_step.MODELS:
        found = [row for row in rows if f'"{model}"' in row["config"] and '"B":8' in row["config"]]
        assert {row["provider"] for row in found} == set(llm_memory.STEPS)
        assert all(float(row["value"]) * MIB < 80e9 for row in found)
        assert all('"scale":"1/1"' in row["config"] for row in found)
