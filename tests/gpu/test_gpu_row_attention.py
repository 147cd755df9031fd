"""Active-row attention's kernels on a GPU: live rows against a frozen canvas."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from dense_attention import (
    assert_rows_are_as_accurate_as_dense,
    output_and_gradients,
    random_key_bias,
    random_qkv,
    take_rows,
)
from torch import Tensor

from boe_kernels import active_row_attention, observe_paths
from boe_kernels._triton import why_not_heads

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LARGE = pytest.mark.device_only


@dataclass(frozen=True)
class Problem:
    """A canvas, its live rows and the options of the call."""

    batch: int = 2
    heads: tuple[int, int] = (4, 2)
    length: int = 63
    width: int = 32
    count: int = 13
    ragged: bool = False
    padded: bool = False
    biased: bool = False
    options: dict[str, int] = field(default_factory=dict)

    def rows(self, device: torch.device) -> Tensor:
        """int64 (A,), or (B, A) of which later canvases have fewer."""
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(2))
        rows = order[: self.count]
        if self.ragged:
            rows = rows.repeat(self.batch, 1)
            for b in range(self.batch):
                rows[b, : b * self.count // self.batch] = -1
        return rows.to(device)

    def padding(self, device: torch.device) -> Tensor | None:
        if not self.padded:
            return None
        keys = torch.arange(self.length, device=device)
        return (keys % 5 != 3).expand(self.batch, -1)

    def bias(self, device: torch.device) -> Tensor | None:
        """Excludes some keys, and all of the second canvas."""
        return random_key_bias(self.batch, self.length).to(device) if self.biased else None

    def tensors(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """Live q, k, v, frozen k, v, and the gradient of the output."""
        if why := why_not_heads(self.width):
            pytest.skip(why)
        shape = {"batch": self.batch, "heads": self.heads, "length": self.length}
        q, k, v, grad = random_qkv(**shape, width=self.width, dtype=dtype)
        _, frozen_k, frozen_v, _ = random_qkv(**shape, width=self.width, dtype=dtype, seed=1)
        rows = self.rows(torch.device("cpu")).expand(self.batch, -1)
        live = [take_rows(x, rows) for x in (q, k, v)]
        every = (*live, frozen_k, frozen_v, take_rows(grad, rows))
        return tuple(x.to(device) for x in every)


PROBLEMS = {
    "A=13": Problem(),
    "A=1": Problem(count=1),
    "A=0": Problem(count=0),
    "A=L": Problem(count=63),
    "L=1": Problem(length=1, count=1),
    "L=129 d=64": Problem(length=129, width=64, count=65),
    "d=80": Problem(length=40, width=80),
    "MQA 7/1": Problem(heads=(7, 1)),
    "ragged": Problem(batch=3, ragged=True),
    "padding": Problem(padded=True, ragged=True),
    "window": Problem(options={"window": 9}),
    "blocks": Problem(options={"block_size": 16}),
    "all masks": Problem(padded=True, ragged=True, options={"window": 21, "block_size": 7}),
    "bias": Problem(batch=3, biased=True),
    "bias, all masks": Problem(
        batch=3, biased=True, padded=True, ragged=True, options={"window": 21, "block_size": 7}
    ),
}
LARGE_PROBLEMS = {
    "LLaDA 32/32": Problem(batch=1, heads=(32, 32), length=1024, width=128, count=64),
    "Dream 28/4": Problem(batch=2, heads=(28, 4), length=1023, width=128, count=200, ragged=True),
    "d=256": Problem(length=300, width=256, heads=(2, 1), count=127),
    "many rows": Problem(batch=1, heads=(8, 2), length=1500, width=64, count=1100),
}


def run(problem: Problem, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    *live, frozen_k, frozen_v, grad = tensors
    device = grad.device
    hiding = {"key_padding_mask": problem.padding(device), "key_bias": problem.bias(device)}
    options = {**hiding, **problem.options}
    rows = problem.rows(grad.device)
    return output_and_gradients(
        lambda *rows_of_qkv: active_row_attention(
            *rows_of_qkv, frozen_k, frozen_v, rows, backend="triton", **options
        ),
        tuple(live),
        grad,
    )


def check(problem: Problem, actual: tuple[Tensor, ...], tensors: tuple[Tensor, ...]) -> None:
    q, k, v, frozen_k, frozen_v, grad = tensors
    assert_rows_are_as_accurate_as_dense(
        actual,
        (q, k, v),
        (frozen_k, frozen_v),
        problem.rows(grad.device).expand(problem.batch, -1),
        grad,
        key_padding_mask=problem.padding(grad.device),
        window=problem.options.get("window"),
        block_size=problem.options.get("block_size"),
        key_bias=problem.bias(grad.device),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "problem",
    [
        *(pytest.param(problem, id=name) for name, problem in PROBLEMS.items()),
        *(pytest.param(problem, id=name, marks=LARGE) for name, problem in LARGE_PROBLEMS.items()),
    ],
)
def test_output_and_gradients_are_as_accurate_as_dense_attention(problem, dtype, device):
    tensors = problem.tensors(dtype, device)
    with observe_paths() as seen:
        actual = run(problem, tensors)
    assert {path for _, path in seen} == {"triton"}
    check(problem, actual, tensors)


@pytest.mark.sanitized
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["ragged", "all masks"])
def test_no_kernel_reads_or_writes_outside_of_its_tensors(name, dtype, device):
    # Only compute-sanitizer can tell; what is wrong besides shows here, too.
    tensors = PROBLEMS[name].tensors(dtype, device)
    check(PROBLEMS[name], run(PROBLEMS[name], tensors), tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_the_canvas_holds_at_the_live_rows_does_not_matter(dtype, device):
    problem = PROBLEMS["A=13"]
    *live, frozen_k, frozen_v, grad = problem.tensors(dtype, device)
    expected = run(problem, (*live, frozen_k, frozen_v, grad))
    spoilt = [x.clone() for x in (frozen_k, frozen_v)]
    for x in spoilt:
        x[:, :, problem.rows(device)] = torch.nan
    actual = run(problem, (*live, *spoilt, grad))
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_rows_give_zeros_and_get_none(dtype, device):
    problem = PROBLEMS["ragged"]
    tensors = problem.tensors(dtype, device)
    padding = (problem.rows(device) < 0)[:, None, :, None]
    spoilt = [x.masked_fill(padding, torch.nan) for x in (*tensors[:3], tensors[5])]
    actual = run(problem, (*spoilt[:3], *tensors[3:5], spoilt[3]))
    for x in actual:
        assert x.isfinite().all()
        assert not x.masked_select(padding).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_inputs_and_expanded_gradients_are_right(dtype, device):
    problem = PROBLEMS["ragged"]
    tensors = problem.tensors(dtype, device)
    moved = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors[:5])
    one = torch.ones_like(tensors[5])
    expanded = one[:1, :1, :1, :1].expand_as(one)
    check(problem, run(problem, (*moved, expanded)), (*tensors[:5], one))
