"""What a decoding step of an 8B model holds at most: a count, for which no memory is needed.

The shapes are those of ``llm_step``: random prompts of 1024 tokens and 128 to generate, all of
them still masked, in bfloat16. One whole step of the decoding loop is run without memory
(:mod:`bench.phantom_memory`), with the code that a GPU would run as far as that is PyTorch's
and ours; our Triton kernels allocate as on an H100 and are not run. Steps:

* ``confidence``: the forward and the choice;
* ``boe``: Backward-on-Entropy by replay, with every sequence steering (``sure=none``) and a
  quarter of the masks as candidates (``tolerance=none``): the most that the defaults ask for;
* ``boe active=all``: the same, with every row of the canvas replayed.

A count is no measurement. Not in it: the workspace of PyTorch's own kernels, what the caching
allocator rounds up or cannot use, CUDA's context. ``python -m bench llm_step`` measures on a GPU.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.llm_step import GENERATED, MODELS, Case, Rivals, Shape, build_denoiser
from bench.phantom_memory import LARGEST_REAL, PhantomMemory
from bench.report import console
from bench.results import RESULTS, Environment, Measurement, Quantiles, save
from boe.denoisers.attention_modes import ATTENTION_NAME
from boe.denoisers.published import blueprint_of
from boe.denoisers.transformers_model import TransformersDenoiser

NAME = "llm_memory"
METRIC = "counted_memory_mb"
ARCHITECTURE = "sm_90"
STEPS = {
    "confidence": "confidence",
    "boe": "boe:sure=none,tolerance=none",
    "boe active=all": "boe:sure=none,tolerance=none,active=all",
}
BATCHES = (8, 16, 32)
CARD = 80e9
PARTS = ("weights", "forward", "gradient", "rest")
_CPU = torch.device("cpu")
_TOY = 64
_MIB = 2**20


def count(case: Case, spec: str, dtype: torch.dtype, **options: Any) -> PhantomMemory:
    """Make one step of the sampler ``spec``, and count what it holds.

    Args:
        options: of :class:`PhantomMemory`.

    Returns:
        The count, with the parts ``PARTS``; ``forward`` is what the prediction made (keys,
        values, logits), ``gradient`` the replay.
    """
    memory = PhantomMemory(**options)
    denoiser = phantom_denoiser(case.shape, dtype, memory)
    step = Rivals(case, denoiser).step(spec)
    with memory, memory.stage("rest"):
        step()
    return memory


def phantom_denoiser(
    shape: Shape, dtype: torch.dtype, memory: PhantomMemory
) -> TransformersDenoiser:
    """The model without memory; what a probe would find out is found at a toy width."""
    toy = build_denoiser(Shape(shape.model, _TOY), _CPU)
    blueprint = blueprint_of(shape.published)
    assert isinstance(toy, TransformersDenoiser)
    assert blueprint is not None
    assert blueprint.mask_id is not None
    model: Any = blueprint.build()
    with memory, memory.stage("weights"):
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                room = torch.empty(weight.shape, dtype=dtype)
                setattr(module, name, nn.Parameter(room, requires_grad=False))
    model.eval().set_attn_implementation(ATTENTION_NAME)
    denoiser = copy.copy(toy)
    denoiser.model = model
    denoiser.embedding = model.get_input_embeddings()
    denoiser.head = model.get_output_embeddings()
    denoiser.facts = replace(
        toy.facts,
        mask_id=blueprint.mask_id,
        vocab_size=blueprint.vocab_size,
        suppressed_ids=(blueprint.mask_id,),
        max_length=None,
    )
    denoiser._suppressed = None
    for stage, method in (("forward", "predict"), ("gradient", "entropy_gradient")):
        setattr(denoiser, method, _counted_as(stage, getattr(denoiser, method), memory))
    return denoiser


def _counted_as(
    stage: str, method: Callable[..., Any], memory: PhantomMemory
) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with memory.stage(stage):
            return method(*args, **kwargs)

    return call


def measurements(case: Case, step: str, **options: Any) -> Iterator[Measurement]:
    """The count of one of ``STEPS``, in MiB, and its parts."""
    memory = count(case, STEPS[step], torch.bfloat16, **options)
    note = f"counted, not measured; kernels' own for {ARCHITECTURE}"
    parts = {f"{step}: {part}": memory.held_at_peak[part] for part in PARTS}
    for provider, size in {step: memory.peak, **parts}.items():
        value = Quantiles.of([size / _MIB])
        yield Measurement(NAME, provider, "step", "bfloat16", case.config, METRIC, value, note)


def main(argv: list[str]) -> None:
    """Count, print and store."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {NAME}")
    parser.add_argument("--quick", action="store_true", help="a toy width, to see that it works")
    parser.add_argument(
        "--output", type=Path, help="CSV file to merge the counts into (default: bench/results/)"
    )
    arguments = parser.parse_args(argv)
    if arguments.quick and arguments.output is None:
        parser.error("--quick needs --output: a toy's count does not belong to the results")
    cases = [Case(Shape(model), batch, GENERATED) for model in MODELS for batch in BATCHES]
    largest = LARGEST_REAL
    if arguments.quick:
        cases = [Case(Shape(model, 32), 2, 12, prompt=20, generated=12) for model in MODELS]
        largest = 1 << 14
    # The hardware column names what has been counted for: the count is of no machine.
    environment = Environment(hardware=f"none ({ARCHITECTURE} counted)")
    for case in cases:
        for step in STEPS:
            counted = list(measurements(case, step, largest_real=largest))
            save(arguments.output or RESULTS / "llm_memory-cpu.csv", counted, environment)
            console().print(f"{case}, {step}: {_sentence(counted)}", highlight=False)


def _sentence(counted: Sequence[Measurement]) -> str:
    whole, *parts = [m.value.p50 for m in counted if m.value is not None]
    scale, unit = (2**10, "GiB") if whole > 2**10 else (1, "MiB")
    named = ", ".join(
        f"{name} {size / scale:.2f}"
        for name, size in zip(PARTS, parts, strict=True)
        if size / scale >= 0.005
    )
    fits = "fits" if whole * _MIB < CARD else "does not fit"
    return f"{whole / scale:.1f} {unit}, {fits} 80 GB ({named})"


if __name__ == "__main__":
    main(sys.argv[1:])
