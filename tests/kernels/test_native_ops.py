"""The native paths as registered operators, and inside ``linear_entropy``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from allocations import AllocationRecorder
from error_bounds import FORWARD_FACTOR, GRADIENT_FACTOR, assert_as_accurate, largest
from torch import Tensor

from boe_kernels import (
    EntropyStats,
    _native_library,
    entropy_stats,
    inject_soft_embeddings,
    linear_entropy,
)
from boe_kernels.entropy import op as entropy
from boe_kernels.head_entropy import op as head_entropy
from boe_kernels.soft_embedding import op as soft_embedding

pytestmark = [
    pytest.mark.usefixtures("poisoned_allocations"),
    pytest.mark.skipif(
        _native_library.LIBRARY is None, reason=f"native kernels: {_native_library.WHY_NOT}"
    ),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IDS = torch.tensor([3, 1])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- operators ----------------------------------------------------------------------


def op_cases() -> dict[str, tuple[Any, Callable[[], tuple[Any, ...]]]]:
    """Per case: the op, and a function that makes its arguments."""
    head = (random(7, 4), random(7, seed=1))
    write = (torch.tensor([[4, 0], [2, -1]]), random(2, 2, 7), random(7, 4), random(4), 0.3, 3)
    shared = (torch.tensor([[4, 0]]), *write[1:])
    per_row = (random(5), random(5, seed=1).abs() + 1)
    return {
        "entropy": (entropy.forward_op, lambda: (random(5, 7).requires_grad_(), None)),
        "entropy, suppressed, strided": (
            entropy.forward_op,
            lambda: (random(7, 5).T.requires_grad_(), IDS),
        ),
        "entropy backward": (
            entropy.backward_op,
            lambda: (random(5, seed=2), random(5, 7), *per_row, IDS),
        ),
        "entropy backward, strided": (
            entropy.backward_op,
            lambda: (random(1).expand(5), random(7, 5).T, *per_row, None),
        ),
        "linear entropy": (
            head_entropy.forward_op,
            lambda: (random(5, 4).requires_grad_(), *head, IDS, 16, True),
        ),
        "linear entropy, strided": (
            head_entropy.forward_op,
            lambda: (random(4, 5).T.requires_grad_(), head[0], None, None, 16, True),
        ),
        "linear entropy, no gradient": (
            head_entropy.forward_op,
            lambda: (random(5, 4), *head, None, 16, False),
        ),
        "soft embedding": (
            soft_embedding.forward_op,
            lambda: (random(2, 10, 4).requires_grad_(), *write, True),
        ),
        "soft embedding, shared rows": (
            soft_embedding.forward_op,
            lambda: (random(4, 10, 2).transpose(0, 2).requires_grad_(), *shared, True),
        ),
    }


@pytest.mark.parametrize("case", op_cases())
def test_opcheck_passes(case):
    op, arguments = op_cases()[case]
    results = torch.library.opcheck(op.op, (*arguments(), "native"))
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


def functions() -> dict[str, tuple[Callable[[Tensor], Tensor], Callable[[int], Tensor]]]:
    """Per op: a scalar function of one tensor, and that tensor for a number of rows."""
    head = random(11, 16)
    rows, p, table, mask_embed = torch.arange(2), random(3, 2, 11), random(11, 16), random(16)

    def soft(x: Tensor) -> Tensor:
        options = {"is_logits": True, "backend": "native"}
        return (
            inject_soft_embeddings(x, rows, p, table, mask_embed, 0.3, 3, **options).square().sum()
        )

    return {
        "entropy": (
            lambda x: entropy_stats(x, backend="native").entropy.square().sum(),
            lambda n: random(n, 11),
        ),
        "linear entropy": (
            lambda x: linear_entropy(x, head, backend="native").entropy.square().sum(),
            lambda n: random(n, 16),
        ),
        "soft embedding": (soft, lambda n: random(3, n, 16)),
    }


@pytest.mark.parametrize("name", functions())
def test_torch_func_grad_equals_autograd(name):
    function, argument = functions()[name]
    leaf = argument(5).requires_grad_()
    (expected,) = torch.autograd.grad(function(leaf), leaf)
    assert expected.any()
    assert torch.equal(torch.func.grad(function)(leaf.detach()), expected)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", functions())
def test_it_compiles_whole(name):
    function, argument = functions()[name]
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 7):
        leaf = argument(rows).requires_grad_()
        (expected,) = torch.autograd.grad(function(leaf), leaf)
        (actual,) = torch.autograd.grad(compiled(leaf), leaf)
        assert torch.equal(actual, expected)


# --- a linear head ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("suppressed", [None, IDS], ids=["all", "suppressed"])
def test_a_linear_head_is_as_accurate_as_by_the_library(suppressed, with_bias, dtype):
    hidden, weight = random(11, 8).to(dtype), random(500, 8, seed=1).to(dtype)
    bias = random(500, seed=2).to(dtype) if with_bias else None
    grad = torch.linspace(-1, 2, 11)

    def run(backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaf = hidden.to(dtype).requires_grad_()
        head = (weight.to(dtype), None if bias is None else bias.to(dtype))
        options = {"suppressed_ids": suppressed, "block_elements": 1500, "backend": backend}
        stats = linear_entropy(leaf, *head, **options)
        upstream = grad.to(stats.entropy.dtype)
        (gradient,) = torch.autograd.grad(stats.entropy, leaf, upstream)
        return *(value.detach() for value in stats), gradient

    actual, library = run("native", dtype), run("library", dtype)
    exact = run("reference", torch.float64)
    size = 8 * largest(hidden) * largest(weight)
    names = (*EntropyStats._fields, "gradient")
    for name, value, truth, plain in zip(names, actual, exact, library, strict=True):
        if name == "argmax":
            continue
        is_gradient = name == "gradient"
        factor = GRADIENT_FACTOR if is_gradient else FORWARD_FACTOR
        scale = size * (largest(weight) if is_gradient else 1.0)
        assert_as_accurate(name, value, truth, plain, factor, scale)


@pytest.mark.parametrize("elements", [1, 499, 500, 1500, 10**6], ids="block_elements={}".format)
def test_a_linear_head_holds_one_block_of_logits_and_makes_the_gradient_in_its_place(elements):
    hidden, weight = random(40, 2).requires_grad_(), random(500, 2)
    with AllocationRecorder(known=(hidden, weight)) as recorder:
        linear_entropy(hidden, weight, block_elements=elements, backend="native").entropy.sum()
    blocks = -(-40 // max(1, elements // 500))
    sizes = [torch.Size(shape).numel() for _, shape in recorder.returned]
    assert max(sizes) <= max(elements, 500)
    assert sum(size >= 500 for size in sizes) == blocks, "the logits of each block, and no more"


def test_no_rows_of_a_linear_head_give_empty_results():
    hidden = torch.zeros(2, 0, 4, requires_grad=True)
    stats = linear_entropy(hidden, random(7, 4), backend="native")
    (gradient,) = torch.autograd.grad(stats.entropy.sum(), hidden)
    assert all(value.shape == (2, 0) for value in stats)
    assert gradient.shape == (2, 0, 4)


def test_what_a_path_named_native_runs_is_seen_and_nothing_else_runs(monkeypatch):
    def refuse(*args: object) -> None:
        raise AssertionError("the library path runs")

    for package in ("entropy", "head_entropy", "soft_embedding"):
        monkeypatch.setattr(f"boe_kernels.{package}.library.forward", refuse)
    for function, argument in functions().values():
        function(argument(3))
