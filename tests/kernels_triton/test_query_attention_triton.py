"""ActiveQueryAttention's Triton kernels, interpreted, in every shape of work."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from attention_shapes import INTERPRETED, SHAPES, force
from dense_attention import (
    active_mask,
    assert_as_accurate_as_dense,
    keep_rows,
    output_and_gradients,
    random_qkv,
    take_rows,
    visible_keys,
)
from torch import Tensor

from boe_kernels import _attention_launch, active_query_attention, decide
from boe_kernels._key_mask import as_key_mask
from boe_kernels._rows import pad_rows
from boe_kernels._triton import recording, why_not_heads
from boe_kernels.query_attention import triton as kernels

pytestmark = pytest.mark.usefixtures("interpreted", "poisoned_allocations")

DTYPES = (torch.float32, torch.float16)
# Members of three canvases: some, one, none; padding anywhere.
RAGGED = torch.tensor([[5, -1, 1, 13, -1], [-1, -1, 7, -1, -1], [-1, -1, -1, -1, -1]])


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forces one shape of work, by name."""
    force(request.param, monkeypatch)
    return request.param


@pytest.fixture(params=["one pass, parts of dq", "split, parts of dq"])
def busy_shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forces one of the shapes that use the most kernels."""
    force(request.param, monkeypatch)
    return request.param


@dataclass(frozen=True)
class Problem:
    """Inputs, active rows and what restricts the keys that a query sees."""

    inputs: tuple[Tensor, Tensor, Tensor]
    grad: Tensor
    rows: Tensor
    mask: Tensor | None = None
    scale: float = 0.3
    window: int | None = None
    block_size: int | None = None
    bias: Tensor | None = None

    @classmethod
    def of(cls, rows: Tensor, **sizes: object) -> Problem:
        """Of the restrictions and what ``random_qkv`` takes."""
        restrictions = {
            name: sizes.pop(name)
            for name in ("mask", "scale", "window", "block_size", "bias")
            if name in sizes
        }
        *inputs, grad = random_qkv(**sizes)
        return cls(tuple(inputs), grad, pad_rows(rows), **restrictions)

    @property
    def restrictions(self) -> tuple[object, ...]:
        return as_key_mask(self.mask, self.bias), self.scale, self.window, self.block_size

    def forward(self) -> tuple[Tensor, Tensor]:
        return kernels.forward(*self.inputs, *self.restrictions)

    def run(
        self, grad_rows: str = "queries", compact: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Output and gradients."""
        out, lse = self.forward()
        return out, *self.backward(out, lse, grad_rows, compact)

    def backward(
        self, out: Tensor, lse: Tensor, grad_rows: str = "queries", compact: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        options = (*self.restrictions, grad_rows, compact)
        return kernels.backward(self.grad, *self.inputs, out, lse, self.rows, *options)

    def assert_accurate(self, actual: tuple[Tensor, ...], grad_rows: str = "queries") -> None:
        q, k, _ = self.inputs
        positions = torch.arange(q.shape[2]).expand(q.shape[0], -1)
        visible = visible_keys(positions, k.shape[2], self.mask, self.window, self.block_size)

        def select(out: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor, ...]:
            if grad_rows == "keys":
                dk, dv = keep_rows(dk, self.rows), keep_rows(dv, self.rows)
            return out, dq, dk, dv

        grad = keep_rows(self.grad, self.rows)
        assert_as_accurate_as_dense(
            actual, self.inputs, grad, visible, self.scale, select, self.bias
        )


def equal(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def blind_canvas(length: int) -> Tensor:
    """Real keys of three canvases: one lacks a few, one has none, one has all."""
    mask = torch.ones(3, length, dtype=torch.bool)
    mask[0, [0, length // 2, length - 1]] = False
    mask[1] = False
    return mask


# --- accuracy -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 63, 127, 129], ids="L={}".format)
def test_output_and_gradients_are_as_accurate_as_dense_attention(length, dtype, shape):
    rows = torch.arange(length - 1, -1, -7)
    case = Problem.of(rows, batch=1, heads=(2, 1), length=length, width=16, dtype=dtype)
    case.assert_accurate(case.run())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 40, 64, 80, 160], ids="D={}".format)
def test_any_head_dimension_is_right(width, dtype, busy_shape):
    rows = torch.tensor([[2, 30, 7]])
    case = Problem.of(rows, batch=1, heads=(2, 1), length=35, width=width, dtype=dtype)
    case.assert_accurate(case.run())


@pytest.mark.parametrize("count", [0, 1, 35], ids="A={}".format)
def test_any_number_of_active_rows_is_right(count, shape):
    rows = torch.randperm(35, generator=torch.Generator().manual_seed(0))[:count]
    case = Problem.of(rows, batch=1, heads=(2, 1), length=35)
    case.assert_accurate(case.run())


@pytest.mark.parametrize("heads", [(3, 3), (4, 2), (3, 1)], ids=["MHA 3", "GQA 4/2", "MQA 3/1"])
def test_any_grouping_of_heads_is_right(heads, busy_shape):
    # 3 · 23 virtual rows: more than one tile of 64, and groups that straddle tiles.
    case = Problem.of(torch.arange(1, 46, 2), batch=1, heads=heads, length=46)
    case.assert_accurate(case.run())


def test_more_or_fewer_keys_than_queries_are_right(busy_shape):
    for key_length in (9, 70):
        case = Problem.of(torch.tensor([0, 19]), length=20, key_length=key_length)
        case.assert_accurate(case.run())


def test_canvases_with_different_numbers_of_active_rows_are_right(shape):
    case = Problem.of(RAGGED, batch=3, heads=(4, 2), length=40)
    case.assert_accurate(case.run())


@pytest.mark.parametrize(
    "restrictions",
    [
        {"mask": blind_canvas(40)},
        {"window": 5},
        {"window": 0},
        {"block_size": 9},
        {"mask": blind_canvas(40), "window": 3, "block_size": 4},
    ],
    ids=["padding", "window 5", "window 0", "blocks of 9", "all of them"],
)
def test_hidden_keys_neither_give_nor_get_anything(restrictions, shape):
    case = Problem.of(RAGGED, batch=3, heads=(2, 1), length=40, **restrictions)
    case.assert_accurate(case.run())


@pytest.mark.parametrize("window", [40, 2**40])
def test_a_window_beyond_the_canvas_hides_nothing(window, busy_shape):
    case = Problem.of(torch.tensor([0, 39]), length=40)
    far = replace(case, window=window, block_size=window)
    far.assert_accurate(far.run())


@pytest.mark.parametrize("scale", [-0.7, 0.0])
def test_a_scale_that_is_not_positive_is_right(scale, busy_shape):
    for mask in (None, blind_canvas(40)):
        case = Problem.of(RAGGED, batch=3, length=40, mask=mask, scale=scale)
        case.assert_accurate(case.run())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_log_sum_exp_is_natural_and_of_single_precision(dtype):
    case = Problem.of(RAGGED, batch=3, length=40, mask=blind_canvas(40), dtype=dtype)
    _, lse = case.forward()
    q, k, _ = (x.double() for x in case.inputs)
    scores = (q * case.scale) @ k.repeat_interleave(2, dim=1).transpose(-1, -2)
    truth = scores.masked_fill(~case.mask[:, None, None], -torch.inf).logsumexp(dim=-1)
    assert lse.dtype == torch.float32
    assert lse.is_contiguous()
    assert torch.equal(lse[1], torch.full_like(lse[1], -torch.inf))
    torch.testing.assert_close(lse.double(), truth, rtol=1e-6, atol=1e-6)


# --- what is wanted of the gradients ------------------------------------------------


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("rows", [RAGGED, torch.arange(0, 40, 3), torch.zeros(0, dtype=int)])
def test_gradients_of_the_active_keys_alone_are_right(rows, window, busy_shape):
    case = Problem.of(rows, batch=3, heads=(2, 1), length=40, window=window)
    case.assert_accurate(case.run("keys"), "keys")


@pytest.mark.parametrize("grad_rows", ["queries", "keys"])
def test_a_compact_dq_is_dq_at_the_rows(grad_rows, shape):
    case = Problem.of(RAGGED, batch=3, heads=(4, 2), length=40)
    out, dq, *others = case.run(grad_rows)
    compact = case.run(grad_rows, compact=True)
    assert equal(compact, (out, take_rows(dq, RAGGED), *others))
    assert compact[1].is_contiguous()


def test_the_public_function_runs_the_kernels(busy_shape):
    case = Problem.of(RAGGED, batch=3, heads=(4, 2), length=40, window=9)
    options = {"window": 9, "scale": case.scale, "backend": "triton"}
    actual = output_and_gradients(
        lambda q, k, v: active_query_attention(q, k, v, RAGGED, **options), case.inputs, case.grad
    )
    assert equal(actual, case.run())


# --- what is read and written -------------------------------------------------------


@pytest.mark.parametrize("grad_rows", ["queries", "keys"])
def test_nothing_of_an_inactive_query_is_read(grad_rows, shape):
    case = Problem.of(RAGGED, batch=3, heads=(4, 2), length=40)
    out, lse = case.forward()
    inactive = ~active_mask(RAGGED, 3, 40)[:, None, :, None]
    q, k, v = case.inputs
    spoilt = replace(
        case,
        inputs=(q.masked_fill(inactive, torch.nan), k, v),
        grad=case.grad.masked_fill(inactive, torch.nan),
    )
    actual = spoilt.backward(
        out.masked_fill(inactive, torch.nan),
        lse.masked_fill(inactive[..., 0], torch.nan),
        grad_rows,
    )
    assert equal(actual, case.backward(out, lse, grad_rows))


@pytest.mark.parametrize("spoilt", ["q", "k", "v"])
def test_nan_in_the_inputs_is_not_hidden(spoilt):
    case = Problem.of(torch.tensor([6, 9]), batch=2, heads=(2, 1), length=40)
    inputs = dict(zip("qkv", case.inputs, strict=True))
    inputs[spoilt] = inputs[spoilt].clone()
    inputs[spoilt][1, :, 6] = torch.nan
    out, dq, dk, _ = replace(case, inputs=tuple(inputs.values())).run()
    seeing = [6] if spoilt == "q" else [0, 6, 39]
    assert out[1][:, seeing].isnan().all()
    assert dq[1][:, 6].isnan().any()
    assert dk[1].isnan().any()
    assert not any(x[0].isnan().any() for x in (out, dq, dk))


# --- strides and repetition ---------------------------------------------------------


def transposed(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def test_results_lie_in_memory_as_their_inputs_do(busy_shape):
    case = Problem.of(RAGGED, batch=3, heads=(4, 2), length=40)
    laid_out = replace(case, inputs=tuple(map(transposed, case.inputs)))
    actual = laid_out.run()
    assert equal(actual, case.run())
    q, k, v = laid_out.inputs
    assert [x.stride() for x in actual] == [x.stride() for x in (q, q, k, v)]


@pytest.mark.parametrize(
    "inputs",
    [
        lambda x: torch.stack([x, x], dim=-1)[..., 0],
        lambda x: torch.nn.functional.pad(x, (1, 2))[..., 1:-2],
        lambda x: x[:1].expand_as(x),
    ],
    ids=["columns apart", "rows apart", "canvases alike"],
)
def test_inputs_with_any_strides_give_the_same_as_their_copies(inputs, busy_shape):
    case = Problem.of(torch.tensor([3, 20]), batch=2, length=40, width=8)
    strided = replace(case, inputs=tuple(map(inputs, case.inputs)))
    copied = replace(case, inputs=tuple(x.contiguous() for x in strided.inputs))
    assert not any(x.is_contiguous() for x in strided.inputs)
    assert equal(strided.run(), copied.run())


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 4, 1, 8), (3, 1, 40, 8)], ids=str)
def test_an_expanded_output_gradient_gives_the_same_as_its_copy(size, busy_shape):
    case = Problem.of(RAGGED, batch=3, heads=(4, 2), length=40)
    grad = case.grad[tuple(slice(n) for n in size)].expand_as(case.grad)
    assert not grad.is_contiguous()
    expanded, copied = replace(case, grad=grad), replace(case, grad=grad.contiguous())
    assert equal(expanded.run(), copied.run())


def test_repeated_runs_give_the_same_bits(busy_shape):
    case = Problem.of(torch.arange(0, 129, 5), batch=1, length=129, dtype=torch.float16)
    first = case.run()
    assert all(equal(case.run(), first) for _ in range(2))


@pytest.mark.parametrize("parts", ["one pass", "one pass, parts of dq"])
def test_the_order_of_the_products_that_sm_90_has_changes_no_bit(parts, monkeypatch):
    force(parts, monkeypatch)
    case = Problem.of(RAGGED, batch=3, heads=(4, 2), length=70, mask=blind_canvas(70), window=20)
    plain = case.run()
    monkeypatch.setitem(_attention_launch._HAS_WGMMA, INTERPRETED, True)
    with recording(INTERPRETED, run=True) as launches:
        assert equal(case.run(), plain)
    orders = [each.options["DQ_FIRST"] for each in launches if "DQ_FIRST" in each.options]
    assert orders == [True]


def test_a_canvas_gives_the_same_bits_alone_as_in_a_batch(shape):
    case = Problem.of(RAGGED, batch=3, heads=(4, 2), length=70, mask=blind_canvas(70))
    together = case.run()
    for b in range(3):
        one = slice(b, b + 1)
        alone = Problem(
            tuple(x[one] for x in case.inputs), case.grad[one], RAGGED[one], case.mask[one]
        )
        assert equal(alone.run(), tuple(x[one] for x in together))


def test_heads_that_are_too_wide_have_no_tiles_and_a_reason():
    assert why_not_heads(256) is None
    assert why_not_heads(257) == "the kernels take heads of at most 256 dimensions, got 257"


def test_a_head_that_is_too_wide_is_refused_by_the_op():
    q, k, v = Problem.of(torch.tensor([0]), batch=1, length=3, width=257).inputs
    with pytest.raises(ValueError, match="heads of at most 256 dimensions, got 257"):
        active_query_attention(q, k, v, torch.tensor([0]), backend="triton")
    assert decide("active_query_attention", "auto", q.device, q.dtype, 257).path != "triton"
