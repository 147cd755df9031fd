"""A whole decoding step at the shapes of 8B models (``bench.llm_step``) as part of the GPU run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import llm_step
from bench.gpu.benchmark import Benchmark, Machine
from bench.llm_step import GENERATED, MODELS, Shape
from bench.results import Config, Measurement
from bench.session import Options


@dataclass(frozen=True)
class Case:
    """A step of ``bench.llm_step``; on the CPU one of a toy."""

    step: llm_step.Case
    toy: bool = False

    @property
    def dtype_name(self) -> str:
        return "float32" if self.toy else "bfloat16"

    @property
    def config(self) -> Config:
        return self.step.config

    def __str__(self) -> str:
        return str(self.step)


def aims(toy: bool) -> list[Case]:
    """Batches of 4, for which there is a target."""
    if toy:
        return []
    return [Case(llm_step.Case(Shape(model), 4, GENERATED)) for model in MODELS]


def sweep(toy: bool) -> list[Case]:
    """The other batches, half of the masks, and memory; what is of one model together."""
    if toy:
        return [Case(llm_step.Case(Shape("dream-7b", 64), 1, 12, 20, 12), toy=True)]
    options = Options(llm_step.NAME, torch.device("cuda"), quick=False, output=Path())
    promised = {case.step for case in aims(toy=False)}
    others = (Case(step) for step in llm_step.cases(options) if step not in promised)
    return sorted(others, key=lambda case: (case.step.shape.model, case.step.batch))


def measure(case: Case, machine: Machine) -> Iterator[Measurement]:
    """Its times, ratios and floors, and the memory that it takes."""
    options = Options(llm_step.NAME, machine.device, quick=machine.toy, output=Path())
    yield from llm_step.measure(case.step, options)


def release() -> None:
    """The model and its graphs: the benchmarks that follow need the memory."""
    llm_step.build_denoiser.cache_clear()
    llm_step.captured.cache_clear()
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


BENCHMARK = Benchmark(
    llm_step.NAME,
    measure,
    aims,
    sweep,
    sources=(
        "boe_kernels",
        "boe/denoisers",
        "boe/decoding",
        "boe/samplers",
        "boe/canvas.py",
        "bench/llm_step.py",
        "bench/gpu/llm.py",
    ),
    tests=(
        "tests/gpu/test_gpu_query_attention.py",
        "tests/gpu/test_gpu_row_attention.py",
        "tests/gpu/test_gpu_tiles.py",
        "tests/gpu/test_gpu_vocabulary.py",
        "tests/gpu/test_gpu_steering.py",
        "tests/gpu/test_gpu_compiled_step.py",
    ),
    limit=480.0,
    needs=300.0,
    release=release,
)
