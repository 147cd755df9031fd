"""The vocabulary ops on a GPU against plain PyTorch and torch.compile.

Shapes are those of a decoding step: some hundred positions of a vocabulary of 126,464 ids
(LLaDA) or 151,936, and a model of width 4096.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from bench import entropy
from bench.gpu.benchmark import Benchmark
from bench.gpu.op_case import Function, OpCase, Tensors, measure, rows_of
from bench.gpu.roofline import Work
from boe_kernels import entropy_stats, linear_entropy

ENTROPY, HEAD = "entropy", "linear_entropy"
VOCABULARY, WIDTH = 126_464, 4096
_CHECKED_ROWS = 8


def _compiled(function: Function) -> Function:
    @cache
    def compiled() -> Any:
        # Shapes of other cases would count towards its limit.
        torch.compiler.reset()
        return torch.compile(function, dynamic=False, fullgraph=True)

    return lambda *inputs: compiled()(*inputs)


# --- entropy_stats ------------------------------------------------------------------


def _entropy_case(dtype: torch.dtype, rows: int, vocabulary: int, compiles: bool) -> OpCase:
    functions: dict[str, Function] = {
        "ours": lambda logits: tuple(entropy_stats(logits, backend="triton")),
        "eager": entropy.eager,
        "categorical": entropy.categorical,
    }
    if compiles:
        functions["compile"] = _compiled(entropy.eager)
    bytes_read = rows * vocabulary * dtype.itemsize
    once = Work(bytes_read, 0, dtype)
    # The gradient of an entropy is asked for after it is known: the logits are read again.
    again = Work(2 * bytes_read, 0, dtype)
    part, part_of_result = rows_of(_CHECKED_ROWS)
    return OpCase(
        ENTROPY,
        dtype,
        {"N": rows, "V": vocabulary},
        partial(_draw_logits, dtype, rows, vocabulary),
        leaves=1,
        functions=functions,
        truth=lambda logits: tuple(entropy_stats(logits, backend="reference")),
        part=part,
        part_of_result=part_of_result,
        work={"forward": (once,), "forward+backward": (once, again)},
    )


def _draw_logits(dtype: torch.dtype, rows: int, vocabulary: int, device: torch.device) -> Tensors:
    random = torch.Generator(device).manual_seed(0)
    logits = torch.randn(rows, vocabulary, generator=random, device=device)
    upstream = torch.randn(rows, generator=random, device=device)
    return (entropy.LOGIT_SCALE * logits).to(dtype), upstream


def entropy_aims(toy: bool) -> list[OpCase]:
    """Statistics and gradient at the roofline: few rows, and more than a cache holds."""
    if toy:
        return [_entropy_case(torch.float32, 9, 131, compiles=False)]
    return [
        _entropy_case(torch.bfloat16, rows, VOCABULARY, compiles=True) for rows in (64, 256, 1024)
    ]


def entropy_sweep(toy: bool) -> list[OpCase]:
    if toy:
        return []
    shapes = ((torch.float32, 256, VOCABULARY), (torch.bfloat16, 256, 50_257))
    more = ((torch.bfloat16, 4096, 151_936), (torch.float16, 256, VOCABULARY))
    return [
        *(_entropy_case(*shape, compiles=True) for shape in shapes),
        *(_entropy_case(*shape, compiles=False) for shape in more),
    ]


# --- linear_entropy -----------------------------------------------------------------


def _eager_head(hidden: Tensor, weight: Tensor) -> Tensors:
    return entropy.eager(linear(hidden, weight))


def _head_case(
    dtype: torch.dtype, rows: int, vocabulary: int, width: int, compiles: bool
) -> OpCase:
    functions: dict[str, Function] = {
        "ours": lambda hidden, weight: tuple(linear_entropy(hidden, weight, backend="triton")),
        "library": lambda hidden, weight: tuple(linear_entropy(hidden, weight, backend="library")),
        "eager": _eager_head,
    }
    if compiles:
        functions["compile"] = _compiled(_eager_head)
    size = dtype.itemsize
    product = 2 * rows * vocabulary * width
    forward = Work((vocabulary + rows) * width * size, product, dtype)
    # One more product; the head is at hand.
    both = Work((vocabulary + 2 * rows) * width * size, 2 * product, dtype)
    part, part_of_result = rows_of(_CHECKED_ROWS)
    return OpCase(
        HEAD,
        dtype,
        {"N": rows, "V": vocabulary, "D": width},
        partial(_draw_head, dtype, rows, vocabulary, width),
        leaves=1,
        functions=functions,
        truth=lambda hidden, weight: tuple(linear_entropy(hidden, weight, backend="reference")),
        part=part,
        part_of_result=part_of_result,
        work={"forward": (forward,), "forward+backward": (both,)},
    )


def _draw_head(
    dtype: torch.dtype, rows: int, vocabulary: int, width: int, device: torch.device
) -> Tensors:
    random = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device)

    # Logits about as wide as those of ``entropy``.
    weight = (entropy.LOGIT_SCALE * width**-0.5 * draw(vocabulary, width)).to(dtype)
    return draw(rows, width).to(dtype), weight, draw(rows)


def head_sweep(toy: bool) -> list[OpCase]:
    if toy:
        return [_head_case(torch.float32, 9, 131, 8, compiles=False)]
    return [
        _head_case(torch.bfloat16, 64, VOCABULARY, WIDTH, compiles=False),
        _head_case(torch.bfloat16, 256, VOCABULARY, WIDTH, compiles=True),
    ]


def _none(toy: bool) -> Sequence[OpCase]:
    return ()


def _benchmark(
    name: str,
    package: str,
    aims: Callable[[bool], Sequence[OpCase]],
    sweep: Callable[[bool], Sequence[OpCase]],
) -> Benchmark:
    return Benchmark(
        name,
        measure,
        aims,
        sweep,
        sources=(
            "boe_kernels/entropy",
            f"boe_kernels/{package}",
            "bench/entropy.py",
            "bench/gpu/op_case.py",
            "bench/gpu/vocabulary.py",
        ),
        tests=("tests/gpu/test_gpu_vocabulary.py",),
    )


BENCHMARKS = (
    _benchmark(ENTROPY, "entropy", entropy_aims, entropy_sweep),
    _benchmark(HEAD, "head_entropy", _none, head_sweep),
)
