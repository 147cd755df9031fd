"""Active-row attention: live rows against a frozen canvas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from dense_attention import (
    DTYPES,
    assert_rows_are_as_accurate_as_dense,
    output_and_gradients,
    random_qkv,
    take_rows,
)
from torch import Tensor

from boe_kernels import active_query_attention, active_row_attention

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

BACKENDS = ("native", "library", "reference")
IN_FLOAT64 = ("library", "reference")
SHARED = torch.tensor([12, 0, 7, 3])
RAGGED = torch.tensor([[12, 0, 7, 3], [-1, 5, -1, 19]])
MOSTLY_EMPTY = torch.tensor([[2, -1], [-1, -1]])
EMPTY = torch.zeros(0, dtype=torch.int64)
ALL = torch.arange(20).flip(0)
INDEX_SETS = {
    "shared": SHARED,
    "ragged": RAGGED,
    "one canvas empty": MOSTLY_EMPTY,
    "A=0": EMPTY,
    "A=L": ALL,
}


@dataclass(frozen=True)
class Problem:
    """Live rows and a frozen canvas, which at the rows holds something else."""

    live: tuple[Tensor, Tensor, Tensor]
    frozen: tuple[Tensor, Tensor]
    rows: Tensor
    grad: Tensor

    def run(self, live: tuple[Tensor, ...] | None = None, **options: object) -> tuple[Tensor, ...]:
        """The output and the gradients of the live rows."""
        return output_and_gradients(self.attention(**options), live or self.live, self.grad)

    def attention(self, **options: object) -> Callable[..., Tensor]:
        return lambda *live: active_row_attention(*live, *self.frozen, self.rows, **options)

    def check(self, actual: tuple[Tensor, ...], **options: object) -> None:
        rows = self.rows.expand(self.grad.shape[0], -1)
        assert_rows_are_as_accurate_as_dense(
            actual, self.live, self.frozen, rows, self.grad, **options
        )


def problem(
    rows: Tensor = SHARED,
    heads: tuple[int, int] = (4, 2),
    length: int = 20,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    q, k, v, grad = random_qkv(heads=heads, length=length, dtype=dtype)
    _, other_k, other_v, _ = random_qkv(heads=heads, length=length, dtype=dtype, seed=1)
    members = rows.expand(2, -1)
    q_rows, k_rows, v_rows, grad_rows = (take_rows(x, members) for x in (q, k, v, grad))
    return Problem((q_rows, k_rows, v_rows), (other_k, other_v), rows, grad_rows)


def equal(these: tuple[Tensor, ...], those: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


# --- values and gradients -----------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", INDEX_SETS)
def test_output_and_gradients_are_as_accurate_as_dense_attention(rows, dtype, backend):
    case = problem(INDEX_SETS[rows], dtype=dtype)
    case.check(case.run(backend=backend))


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (7, 1)], ids=["MHA 4", "GQA 8/2", "MQA 7/1"])
@pytest.mark.parametrize("length", [1, 63, 127, 129], ids="L={}".format)
def test_any_length_and_head_grouping_is_right(length, heads):
    rows = torch.arange(length - 1, -1, -4)
    case = problem(rows, heads, length)
    case.check(case.run())


@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("rows", [SHARED, ALL], ids=["A=4", "A=L"])
def test_with_keys_of_the_canvas_itself_it_gives_the_rows_of_query_attention(rows, backend):
    q, k, v, grad = random_qkv(heads=(8, 2), dtype=torch.float64)
    case = Problem(tuple(x[:, :, rows] for x in (q, k, v)), (k, v), rows, grad[:, :, rows])
    options = {"window": 6, "key_padding_mask": (torch.arange(20) % 5 != 3).expand(2, -1)}
    query_attention = output_and_gradients(
        lambda *qkv: active_query_attention(*qkv, rows, **options), (q, k, v), grad
    )
    case.check(case.run(backend=backend, **options), **options)
    case.check(tuple(x[:, :, rows] for x in query_attention), **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", INDEX_SETS)
def test_the_frozen_canvas_does_not_matter_at_the_active_rows(rows, backend):
    case = problem(INDEX_SETS[rows])
    k, v = (x.clone() for x in case.frozen)
    for b, members in enumerate(case.rows.expand(2, -1)):
        k[b][:, members[members >= 0]] = torch.nan
        v[b][:, members[members >= 0]] = torch.nan
    spoilt = Problem(case.live, (k, v), case.rows, case.grad)
    assert equal(spoilt.run(backend=backend), case.run(backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_keys_and_values_get_no_gradient(backend):
    case = problem(RAGGED)
    frozen = tuple(x.clone().requires_grad_() for x in case.frozen)
    live = tuple(x.clone().requires_grad_() for x in case.live)
    out = active_row_attention(*live, *frozen, case.rows, backend=backend)
    out.backward(case.grad)
    assert [x.grad for x in frozen] == [None, None]
    assert equal(tuple(x.grad for x in live), case.run(backend=backend)[1:])


def test_a_canvas_that_alone_requires_a_gradient_gives_a_constant_output():
    case = problem()
    frozen = tuple(x.clone().requires_grad_() for x in case.frozen)
    out = active_row_attention(*case.live, *frozen, case.rows)
    assert torch.autograd.grad(out.sum(), frozen, allow_unused=True) == (None, None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [0, 3, 1000], ids="window={}".format)
@pytest.mark.parametrize("rows", [SHARED, RAGGED], ids=["shared", "ragged"])
def test_a_window_and_padding_limit_which_keys_are_seen(rows, window, backend):
    # Row 12 of the first canvas sits among padding keys; the second sees no key at all.
    padding = torch.ones(2, 20, dtype=torch.bool)
    padding[0, 8:17] = padding[1] = False
    case = problem(rows)
    actual = case.run(window=window, key_padding_mask=padding, backend=backend)
    case.check(actual, window=window, key_padding_mask=padding)
    assert not actual[0][1].any()
    assert all(x.isfinite().all() for x in actual)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [SHARED, RAGGED], ids=["shared", "ragged"])
def test_blocks_hide_the_keys_of_later_blocks_from_the_rows(rows, backend):
    case = problem(rows)
    options = {"block_size": 6, "window": 9}
    case.check(case.run(backend=backend, **options), **options)


def test_the_window_counts_from_the_positions_of_the_rows():
    case = problem(torch.tensor([15, 2]))
    expected = case.run(window=1)
    k, v = (x.clone() for x in case.frozen)
    far = torch.tensor([j for j in range(20) if j not in (1, 2, 3, 14, 15, 16)])
    k[:, :, far] = v[:, :, far] = 1e3
    assert equal(Problem(case.live, (k, v), case.rows, case.grad).run(window=1), expected)


@pytest.mark.parametrize("scale", [0.0, 0.05, 1.5, -0.7], ids="scale={}".format)
def test_a_given_scale_replaces_the_default(scale):
    case = problem(RAGGED)
    case.check(case.run(scale=scale), scale=scale)


@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "window and padding"])
def test_gradients_match_finite_differences(masked, backend):
    rows = torch.tensor([[4, 0, 2], [5, -1, -1]])
    case = problem(rows, length=6, dtype=torch.float64)
    padding = torch.tensor([[True, False, True, True, True, True], [False] * 6])
    options = {"window": 1, "key_padding_mask": padding} if masked else {}
    live = tuple(x[..., :3].clone().requires_grad_() for x in case.live)
    frozen = tuple(x[..., :3] for x in case.frozen)

    def rows_of(*live: Tensor) -> Tensor:
        return active_row_attention(*live, *frozen, rows, backend=backend, **options)

    assert torch.autograd.gradcheck(rows_of, live)


def test_the_reference_can_be_differentiated_twice():
    case = problem(torch.tensor([3, 1]), heads=(2, 1), length=4, dtype=torch.float64)
    live = tuple(x[..., :2].clone().requires_grad_() for x in case.live)
    frozen = tuple(x[..., :2] for x in case.frozen)

    def rows_of(*live: Tensor) -> Tensor:
        return active_row_attention(*live, *frozen, case.rows, backend="reference")

    assert torch.autograd.gradgradcheck(rows_of, live)


# --- padding ------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [RAGGED, MOSTLY_EMPTY], ids=["ragged", "one canvas empty"])
def test_padding_rows_give_zeros_and_get_none_but_zeros(rows, backend):
    case = problem(rows)
    padding = rows < 0
    full = tuple(torch.where(padding[:, None, :, None], 3.0, x) for x in case.live)
    for result in case.run(live=full, backend=backend):
        assert not result.transpose(1, 2)[padding].any()
        assert result.transpose(1, 2)[~padding].any()


@pytest.mark.parametrize("junk", [1e4, torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("spoilt", ["q_rows", "k_rows", "v_rows", "output gradient"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_padding_rows_hold_does_not_matter(backend, spoilt, junk):
    case = problem(RAGGED)
    padding = (RAGGED < 0)[:, None, :, None]
    everything = dict(
        zip(("q_rows", "k_rows", "v_rows", "output gradient"), (*case.live, case.grad), strict=True)
    )
    everything[spoilt] = torch.where(padding, junk, everything[spoilt])
    *live, grad = everything.values()
    actual = Problem(tuple(live), case.frozen, case.rows, grad).run(backend=backend)
    assert equal(actual, case.run(backend=backend))


# --- strides and repetition ---------------------------------------------------------


def test_transposed_inputs_give_the_same_as_contiguous_ones():
    case = problem(RAGGED, heads=(8, 2))

    def transposed(x: Tensor) -> Tensor:
        result = x.transpose(1, 2).contiguous().transpose(1, 2)
        assert not result.is_contiguous()
        return result

    live, frozen = tuple(map(transposed, case.live)), tuple(map(transposed, case.frozen))
    actual = Problem(live, frozen, case.rows, transposed(case.grad)).run()
    assert equal(actual, case.run())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_dimension_need_not_be_dense(backend):
    case = problem(RAGGED, heads=(8, 2))

    def gapped(x: Tensor) -> Tensor:
        return torch.stack((x, x + 1), dim=-1)[..., 0]

    live, frozen = tuple(map(gapped, case.live)), tuple(map(gapped, case.frozen))
    actual = Problem(live, frozen, case.rows, gapped(case.grad)).run(backend=backend)
    for a, e in zip(actual, case.run(backend=backend), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 4, 1, 8), (2, 1, 4, 8)], ids=str)
def test_an_expanded_output_gradient_gives_the_same_as_its_contiguous_copy(size):
    case = problem(RAGGED)
    grad = case.grad[tuple(slice(n) for n in size)].expand_as(case.grad)
    assert not grad.is_contiguous()
    expanded = Problem(case.live, case.frozen, case.rows, grad)
    copied = Problem(case.live, case.frozen, case.rows, grad.contiguous())
    assert equal(expanded.run(), copied.run())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeated_runs_give_the_same_bits(dtype):
    case = problem(torch.arange(0, 129, 3), (8, 2), 129, dtype)
    first = case.run()
    assert all(equal(case.run(), first) for _ in range(5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spoilt", ["q_rows", "k_rows", "v_rows", "k", "v"])
def test_nan_in_the_inputs_is_not_hidden(spoilt, backend):
    case = problem(RAGGED, length=40)
    everything = dict(
        zip(("q_rows", "k_rows", "v_rows", "k", "v"), (*case.live, *case.frozen), strict=True)
    )
    # Row 1 of the second canvas is at position 5; position 6 is frozen.
    row = 6 if spoilt in ("k", "v") else 1
    everything[spoilt] = everything[spoilt].clone()
    everything[spoilt][1, :, row] = torch.nan
    *live, k, v = everything.values()
    out, dq, *_ = Problem(tuple(live), (k, v), case.rows, case.grad).run(backend=backend)
    seeing = [1] if spoilt == "q_rows" else [1, 3]
    assert out[1][:, seeing].isnan().all()
    assert dq[1][:, seeing].isnan().any()
    assert not out[0].isnan().any()
    assert not dq[0].isnan().any()
