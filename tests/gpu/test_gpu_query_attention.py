"""ActiveQueryAttention's kernels on a GPU against dense attention in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from dense_attention import (
    assert_as_accurate_as_dense,
    keep_rows,
    output_and_gradients,
    random_key_bias,
    random_qkv,
    take_rows,
    visible_keys,
)
from error_bounds import FORWARD_FACTOR, assert_as_accurate, largest
from torch import Tensor

from boe_kernels import (
    active_query_attention,
    active_query_backward,
    active_query_forward,
    observe_paths,
    pad_rows,
)
from boe_kernels._triton import why_not_heads

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LARGE = pytest.mark.device_only

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """A shape, its active rows and the options of the call."""

    batch: int = 2
    heads: tuple[int, int] = (4, 2)
    length: int = 63
    width: int = 32
    key_length: int | None = None
    rows: object = "third"
    options: dict[str, object] = field(default_factory=dict)
    padded: bool = False
    biased: bool = False

    def index_set(self, device: torch.device) -> Tensor:
        """The active rows."""
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(1))
        if self.rows == "third":
            rows = order[: -(-self.length // 3)]
        elif self.rows == "all":
            rows = order
        elif self.rows == "ragged":
            # Every canvas has half as many as the one before it.
            rows = torch.full((self.batch, self.length // 2), -1)
            for b in range(self.batch):
                count = self.length // 2 >> b
                rows[b, self.length // 2 - count :] = order.roll(b)[:count]
        elif self.rows == "mask":
            return (torch.arange(self.length) % 3 == 1).to(device)
        else:
            assert isinstance(self.rows, int)
            rows = order[: self.rows]
        return rows.to(device)

    def padding(self, device: torch.device) -> Tensor | None:
        """Real keys: a few are not, and the last canvas has none."""
        if not self.padded:
            return None
        keys = self.key_length or self.length
        mask = torch.ones(self.batch, keys, dtype=torch.bool)
        mask[0, [0, keys // 2, keys - 1]] = False
        if self.batch > 1:
            mask[-1] = False
        return mask.to(device)

    def bias(self, device: torch.device) -> Tensor | None:
        """Excludes some keys, and all of the second canvas."""
        keys = self.key_length or self.length
        return random_key_bias(self.batch, keys).to(device) if self.biased else None

    def tensors(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """q, k, v and the gradient of the output."""
        if why := why_not_heads(self.width):
            pytest.skip(why)
        drawn = random_qkv(
            self.batch, self.heads, self.length, self.key_length, self.width, dtype=dtype
        )
        return tuple(x.to(device) for x in drawn)

    def visible(self, device: torch.device) -> Tensor:
        return visible_keys(
            torch.arange(self.length, device=device).expand(self.batch, -1),
            self.key_length or self.length,
            self.padding(device),
            self.options.get("window"),  # type: ignore[arg-type]
            self.options.get("block_size"),  # type: ignore[arg-type]
        )


PROBLEMS = {
    "L=1": Problem(length=1, rows="all"),
    "L=63": Problem(),
    "L=127 d=16": Problem(length=127, width=16),
    "L=129 d=64": Problem(length=129, width=64, rows=1),
    "A=0": Problem(rows=0),
    "A=1": Problem(rows=1),
    "A=L": Problem(length=65, rows="all"),
    "ragged": Problem(batch=3, rows="ragged"),
    "mask": Problem(rows="mask"),
    "MQA 7/1": Problem(heads=(7, 1)),
    "d=80": Problem(length=40, width=80),
    "d=96 ragged": Problem(length=40, width=96, rows="ragged"),
    "fewer keys": Problem(key_length=17),
    "more keys": Problem(key_length=130),
    "padding": Problem(heads=(8, 2), padded=True, rows="ragged"),
    "window": Problem(options={"window": 9}),
    "window 0": Problem(options={"window": 0}),
    "blocks": Problem(options={"block_size": 16}, rows="ragged"),
    "all masks": Problem(padded=True, options={"window": 21, "block_size": 7}),
    "scale": Problem(options={"scale": 0.31}),
    "bias": Problem(batch=3, biased=True, rows="ragged"),
    "bias, all masks": Problem(
        batch=3, biased=True, padded=True, options={"window": 21, "block_size": 7}
    ),
}
LARGE_PROBLEMS = {
    "d=128": Problem(length=513, width=128, heads=(8, 8), rows=64),
    "d=256": Problem(length=127, width=256, heads=(2, 1)),
    "d=48": Problem(length=300, width=48),
    "Dream 28/4": Problem(batch=1, heads=(28, 4), length=1023, width=128, rows=100),
    "LLaDA 32/32": Problem(batch=1, heads=(32, 32), length=1024, width=128, rows=64),
    "many rows": Problem(batch=1, heads=(8, 8), length=1023, width=64, rows=700),
    "all of many": Problem(batch=1, heads=(4, 1), length=1500, width=128, rows="all"),
    "long, masked": Problem(
        batch=2, heads=(8, 2), length=1025, width=128, rows="ragged", padded=True
    ),
    "long, biased": Problem(
        batch=1, heads=(8, 2), length=1025, width=128, rows=200, padded=True, biased=True
    ),
    "long window": Problem(length=2000, width=64, rows=300, options={"window": 100}),
    "long blocks": Problem(
        length=1100, width=128, rows=200, options={"block_size": 32}, padded=True
    ),
}
EVERY = [
    *(pytest.param(problem, id=name) for name, problem in PROBLEMS.items()),
    *(pytest.param(problem, id=name, marks=LARGE) for name, problem in LARGE_PROBLEMS.items()),
]


def check(problem: Problem, actual: tuple[Tensor, ...], *tensors: Tensor) -> None:
    """``actual`` (out, dq, dk, dv) of the call on q, k, v and the output's gradient."""
    *inputs, grad = tensors
    rows = problem.index_set(grad.device)
    scale = problem.options.get("scale")
    assert_as_accurate_as_dense(
        actual,
        tuple(inputs),  # type: ignore[arg-type]
        keep_rows(grad, rows),
        problem.visible(grad.device),
        scale,  # type: ignore[arg-type]
        key_bias=problem.bias(grad.device),
    )


def hides(problem: Problem, device: torch.device) -> dict[str, Tensor | None]:
    return {"key_padding_mask": problem.padding(device), "key_bias": problem.bias(device)}


def attend(problem: Problem, device: torch.device, **options: object) -> Attention:
    rows, hiding = problem.index_set(device), hides(problem, device)
    every = {**hiding, "backend": "triton", **problem.options, **options}
    return lambda q, k, v: active_query_attention(q, k, v, rows, **every)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", EVERY)
def test_output_and_gradients_are_as_accurate_as_dense_attention(problem, dtype, device):
    *inputs, grad = problem.tensors(dtype, device)
    with observe_paths() as seen:
        actual = output_and_gradients(attend(problem, device), tuple(inputs), grad)
    assert {path for _, path in seen} == {"triton"}
    check(problem, actual, *inputs, grad)
    inactive = keep_rows(torch.ones_like(grad), problem.index_set(device)) == 0
    assert not actual[1][inactive].any(), "dq is exactly zero at inactive rows"


@pytest.mark.sanitized
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["ragged", "all masks", "d=80"])
def test_no_kernel_reads_or_writes_outside_of_its_tensors(name, dtype, device):
    # Only compute-sanitizer can tell; what is wrong besides shows here, too.
    problem = PROBLEMS[name]
    *inputs, grad = problem.tensors(dtype, device)
    check(
        problem, output_and_gradients(attend(problem, device), tuple(inputs), grad), *inputs, grad
    )


# --- forward and backward by hand ---------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["L=63", "ragged", "padding", "all masks", "more keys"])
def test_the_log_sum_exp_is_that_of_the_visible_scores(name, dtype, device):
    problem = PROBLEMS[name]
    q, k, v, _ = problem.tensors(dtype, device)
    padding = problem.padding(device)
    _, lse = active_query_forward(
        q, k, v, key_padding_mask=padding, backend="triton", **problem.options
    )
    groups = q.shape[1] // k.shape[1]
    keys = k.double().repeat_interleave(groups, dim=1).transpose(-1, -2)
    scores = q.double() @ keys / math.sqrt(problem.width)
    truth = scores.masked_fill(~problem.visible(device), -torch.inf).logsumexp(dim=-1)
    assert lse.dtype == torch.float32
    assert lse.shape == truth.shape
    blind = truth == -torch.inf
    assert torch.equal(lse == -torch.inf, blind)
    lse, truth = lse[~blind], truth[~blind]
    assert_as_accurate("lse", lse, truth, truth.float(), FORWARD_FACTOR, largest(scores))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["A=0", "A=1", "ragged", "mask", "MQA 7/1", "all masks"])
def test_compact_dq_holds_the_active_rows_alone(name, dtype, device):
    problem = PROBLEMS[name]
    q, k, v, grad = problem.tensors(dtype, device)
    options = {"key_padding_mask": problem.padding(device), "backend": "triton", **problem.options}
    rows = problem.index_set(device)
    out, lse = active_query_forward(q, k, v, **options)
    compact, dk, dv = active_query_backward(
        grad, q, k, v, out, lse, rows, compact_dq=True, **options
    )
    dq, *others = active_query_backward(grad, q, k, v, out, lse, rows, **options)
    padded = pad_rows(rows).expand(problem.batch, -1)
    assert torch.equal(compact, take_rows(dq, padded))
    assert torch.equal(dk, others[0])
    assert torch.equal(dv, others[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["A=0", "A=1", "A=L", "ragged", "MQA 7/1", "all masks"])
def test_gradients_of_keys_can_be_restricted_to_the_active_rows(name, dtype, device):
    problem = PROBLEMS[name]
    *inputs, grad = problem.tensors(dtype, device)
    everywhere = output_and_gradients(attend(problem, device), tuple(inputs), grad)
    out, dq, dk, dv = output_and_gradients(
        attend(problem, device, grad_rows="keys"), tuple(inputs), grad
    )
    rows = problem.index_set(device)
    assert torch.equal(out, everywhere[0])
    # dq sees all keys either way; the others may come from another kernel.
    kept = [keep_rows(x, rows) for x in everywhere[2:]]
    check_parts(problem, (out, dq, dk, dv), kept, *inputs, grad)


def check_parts(
    problem: Problem, actual: tuple[Tensor, ...], kept: list[Tensor], *tensors: Tensor
) -> None:
    """dk and dv at active rows are as accurate as the whole, and zero at the others."""
    rows = problem.index_set(tensors[0].device)
    *inputs, grad = tensors

    def at_rows(out: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor, ...]:
        return out, dq, keep_rows(dk, rows), keep_rows(dv, rows)

    assert_as_accurate_as_dense(
        actual,
        tuple(inputs),  # type: ignore[arg-type]
        keep_rows(grad, rows),
        problem.visible(grad.device),
        select=at_rows,
    )
    for mine, whole in zip(actual[2:], kept, strict=True):
        assert torch.equal(mine == 0, whole == 0)


# --- layouts ------------------------------------------------------------------------


def layouts(x: Tensor) -> dict[str, Tensor]:
    """``x`` (B, H, L, D) in other places of memory."""
    batch, heads, length, width = x.shape
    wide = x.new_full((batch, heads, length, width + 8), torch.nan)
    wide[..., :width] = x
    unaligned = x.new_full((x.numel() + 1,), torch.nan)
    unaligned[1:] = x.flatten()
    columns = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    return {
        "(B, L, H, D)": x.transpose(1, 2).contiguous().transpose(1, 2),
        "rows with gaps": wide[..., :width],
        "off by one element": unaligned[1:].view_as(x),
        "columns": columns,
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "layout", ["(B, L, H, D)", "rows with gaps", "off by one element", "columns"]
)
def test_inputs_and_gradients_may_lie_anywhere_in_memory(layout, dtype, device):
    problem = PROBLEMS["ragged"]
    tensors = problem.tensors(dtype, device)
    *inputs, grad = (layouts(x)[layout] for x in tensors)
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(problem, device)(*leaves)
    gradients = torch.autograd.grad(out, leaves, grad)
    check(problem, (out.detach(), *gradients), *tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_of_a_sum_is_right(dtype, device):
    # sum() sends an expanded scalar, with all strides zero.
    problem = PROBLEMS["ragged"]
    *inputs, grad = problem.tensors(dtype, device)
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(problem, device)(*leaves)
    gradients = torch.autograd.grad(out.sum(), leaves)
    check(problem, (out.detach(), *gradients), *inputs, torch.ones_like(grad))


# --- NaN ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spoilt", ["q", "dout"])
def test_what_inactive_rows_hold_does_not_reach_the_gradients(spoilt, dtype, device):
    problem = PROBLEMS["ragged"]
    q, k, v, grad = problem.tensors(dtype, device)
    rows = problem.index_set(device)
    inactive = keep_rows(torch.ones_like(grad), rows) == 0
    spoil = {name: x.masked_fill(inactive, torch.nan) for name, x in (("q", q), ("dout", grad))}
    inputs = (spoil["q"] if spoilt == "q" else q, k, v)
    dout = spoil["dout"] if spoilt == "dout" else grad
    out, dq, dk, dv = output_and_gradients(attend(problem, device), inputs, dout)
    clean = output_and_gradients(attend(problem, device), (q, k, v), grad)
    assert torch.equal(dq, clean[1])
    assert torch.equal(dk, clean[2])
    assert torch.equal(dv, clean[3])
    if spoilt == "q":
        assert out[inactive].isnan().all()
    assert torch.equal(out[~inactive], clean[0][~inactive])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spoilt", [0, 1, 2], ids=["q", "k", "v"])
def test_nan_in_the_inputs_is_not_hidden(spoilt, dtype, device):
    problem = Problem(rows=63)
    *inputs, grad = problem.tensors(dtype, device)
    inputs[spoilt][1, :, 2] = torch.nan
    out, *gradients = output_and_gradients(attend(problem, device), tuple(inputs), grad)
    rows = [2] if spoilt == 0 else range(63)
    assert out[1, :, list(rows)].isnan().all()
    # dv = Pᵀ dout does not depend on v.
    spoilt_gradients = gradients[:2] if spoilt == 2 else gradients
    assert all(gradient[1].isnan().any() for gradient in spoilt_gradients)
    assert not any(x[0].isnan().any() for x in (out, *gradients))
