"""ActiveQueryAttention on a GPU against everything that a user could have instead.

Three kinds of cases: *aims*, on which the project has promised something, with every rival
and every mode; *dense*, what attention and its whole backward cost at a shape; *active*,
the backward through |A| rows at that shape, ours and the rivals assembled from library calls.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from bench import attention
from bench.attention_providers import Inputs
from bench.attention_truth import Truth
from bench.gpu.benchmark import Benchmark, Machine, Task, time_task
from bench.gpu.launches import Contestant, reason
from bench.gpu.rivals import (
    BY_HAND,
    DENSE,
    GATHERED,
    LIBRARY_ASSEMBLED,
    OURS,
    TWO_CALL,
    Rival,
)
from bench.gpu.roofline import Work
from bench.results import Config, Measurement, Quantiles
from bench.timing import Call, peak_extra_memory

NAME = "attention"
Kind = Literal["aims", "dense", "active"]

RIVALS: dict[Kind, tuple[Rival, ...]] = {
    "aims": (OURS, BY_HAND, *DENSE, *LIBRARY_ASSEMBLED),
    "dense": (OURS, BY_HAND, *DENSE),
    "active": (OURS, BY_HAND, TWO_CALL, GATHERED),
}
MODES: dict[Kind, tuple[str, ...]] = {
    "aims": ("backward", "forward", "forward+backward"),
    "dense": ("forward", "backward"),
    "active": ("backward",),
}

LENGTHS = (512, 1024, 2048, 4096)
HEADS = ((32, 32), (28, 4))


@dataclass(frozen=True)
class Case:
    """A shape, and how much is measured of it."""

    shape: attention.Case
    kind: Kind

    @property
    def dtype_name(self) -> str:
        return self.shape.dtype_name

    @property
    def config(self) -> Config:
        config = dict(self.shape.config)
        if self.kind == "dense":
            # The whole backward: no |A| in it.
            del config["A"]
        return config

    def __str__(self) -> str:
        return str(self.shape)


def aims(toy: bool) -> list[Case]:
    """L = 1024, d = 128, bfloat16: 32 heads, and 28 query heads on 4."""
    if toy:
        return [Case(attention.Case(torch.float32, 16, 24, 3, 4, 2), "aims")]
    return [
        Case(attention.Case(torch.bfloat16, 128, 1024, active, *heads), "aims")
        for active in (64, 128, 256)
        for heads in HEADS
    ]


def sweep(toy: bool) -> list[Case]:
    """Every length, width, kind of heads and batch; the most telling first."""
    if toy:
        shape = attention.Case(torch.float32, 16, 17, 17, 1, 1)
        return [
            Case(shape, "dense"),
            Case(attention.Case(torch.float16, 16, 17, 5, 1, 1), "active"),
        ]
    found: list[Case] = []
    for batch, width in ((1, 128), (1, 64), (8, 128), (8, 64)):
        for heads in HEADS:
            for length in sorted(LENGTHS, key=lambda length: abs(length - 1024)):
                found += _shapes(torch.bfloat16, width, length, heads, batch)
    for dtype in (torch.float16, torch.float32):
        for active in (16, 64, 256):
            shape = attention.Case(dtype, 128, 1024, active, *HEADS[0])
            found.append(Case(shape, "active"))
        found.append(Case(attention.Case(dtype, 128, 1024, 1024, *HEADS[0]), "dense"))
    promised = {str(case) for case in aims(toy=False)}
    return [case for case in found if case.kind == "dense" or str(case) not in promised]


def _shapes(
    dtype: torch.dtype, width: int, length: int, heads: tuple[int, int], batch: int
) -> Iterator[Case]:
    def shape(active: int) -> attention.Case:
        return attention.Case(dtype, width, length, active, *heads, batch)

    yield Case(shape(length), "dense")
    # From 16 to L; at batch 8 fewer of them.
    step = 2 if batch == 1 else 4
    active = 16
    while active < length:
        yield Case(shape(active), "active")
        active *= step
    yield Case(shape(length), "active")


def measure(case: Case, machine: Machine) -> Iterator[Measurement]:
    """Times in every mode; of the aims also ratios, first calls and memory."""
    shape, thorough = case.shape, case.kind == "aims"

    def row(provider: str, mode: str, metric: str, value: float) -> Measurement:
        once = Quantiles.of([value])
        return Measurement(NAME, provider, mode, case.dtype_name, case.config, metric, once)

    inputs = shape.inputs(machine.device)
    excluded: dict[str, str] = {}
    first_calls: dict[str, float] = {}
    truth = Truth(inputs)
    for rival in RIVALS[case.kind]:
        try:
            first_calls[rival.name] = _verify(rival, inputs, truth)
        except Exception as error:
            excluded[rival.name] = reason(error, machine.device)
    del truth
    for mode in MODES[case.kind]:
        work = _work(shape, mode)
        task = Task(
            mode,
            floor=sum(machine.ceilings.floor(part) for part in work),
            touched=sum(part.bytes for part in work),
            held=sum(part.bytes for part in _work(shape, "forward+backward", rows=shape.length)),
        )
        contestants = {
            rival.name: Contestant(partial(_bind, rival, mode), rival.setting)
            for rival in RIVALS[case.kind]
        }
        # The same rows in every set: what depends on them may be prepared once.
        draw = partial(_draw, shape, machine.device, inputs.active, inputs.inactive)
        yield from time_task(
            NAME,
            case,
            task,
            contestants,
            draw,
            machine,
            excluded=excluded,
            with_ratios=thorough,
        )
    if not thorough:
        return
    for rival in RIVALS[case.kind]:
        if rival.name in excluded:
            continue
        yield row(rival.name, "forward+backward", "first_call_s", first_calls[rival.name])
        with rival.setting():
            memory = peak_extra_memory(_bind(rival, "backward", inputs), machine.device)
        yield row(rival.name, "backward", "peak_memory_mb", memory)


def _draw(shape: attention.Case, device: torch.device, active: Tensor, inactive: Tensor) -> Inputs:
    drawn = shape.inputs(device)
    return Inputs(drawn.q, drawn.k, drawn.v, drawn.dout, active, inactive)


def _bind(rival: Rival, mode: str, x: Inputs) -> Call:
    if mode == "forward":
        return partial(rival.forward, x)
    if mode == "backward":
        return partial(rival.backward, x, rival.forward(x), x.dout)

    def both() -> object:
        return rival.backward(x, rival.forward(x), x.dout)

    return both


def _verify(rival: Rival, x: Inputs, truth: Truth) -> float:
    """Refuse a rival that is wrong; returns the seconds of its first forward and backward."""
    began = time.perf_counter()
    with rival.setting():
        saved = rival.forward(x)
        gradients = rival.backward(x, saved, x.masked_dout if rival.is_dense else x.dout)
    if x.q.device.type == "cuda":
        torch.cuda.synchronize(x.q.device)
    taken = time.perf_counter() - began
    truth.compare(rival.name, rival.output(saved), *gradients)
    return taken


def _work(shape: attention.Case, mode: str, rows: int | None = None) -> list[Work]:
    """What a forward and a backward through ``rows`` (by default the active ones) must do."""
    rows = shape.active if rows is None else rows
    size = shape.dtype.itemsize
    q = shape.batch * shape.q_heads * shape.length
    kv = shape.batch * shape.kv_heads * shape.length
    through = shape.batch * shape.q_heads * rows
    forward = Work(
        # q and the output; keys and values; the log-sum-exp in float32.
        bytes=(2 * q + 2 * kv) * shape.width * size + 4 * q,
        operations=4 * q * shape.length * shape.width,
        dtype=shape.dtype,
    )
    backward = Work(
        # Rows of q, output and its gradient; dq; k, v, dk and dv; the log-sum-exp.
        bytes=(3 * through + q + 4 * kv) * shape.width * size + 4 * through,
        operations=10 * through * shape.length * shape.width,
        dtype=shape.dtype,
    )
    return {"forward": [forward], "backward": [backward]}.get(mode, [forward, backward])


BENCHMARK = Benchmark(
    NAME,
    measure,
    aims,
    sweep,
    sources=(
        "boe_kernels/query_attention",
        "bench/attention.py",
        "bench/attention_providers.py",
        "bench/attention_truth.py",
        "bench/gathered_attention.py",
        "bench/gpu/attention.py",
        "bench/gpu/rivals.py",
    ),
    tests=("tests/gpu/test_gpu_query_attention.py", "tests/gpu/test_gpu_tiles.py"),
)
