"""ActiveQueryAttention: dense forward, backward through the active rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from allocations import AllocationRecorder
from dense_attention import (
    DTYPES,
    active_mask,
    assert_as_accurate_as_dense,
    keep_rows,
    output_and_gradients,
    random_qkv,
    take_rows,
    visible_keys,
)
from error_bounds import FORWARD_FACTOR, assert_as_accurate, largest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from boe_kernels import (
    active_query_attention,
    active_query_backward,
    active_query_forward,
    pad_rows,
)

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

BACKENDS = ("native", "library", "reference")
IN_FLOAT64 = ("library", "reference")

# One index set, {0, 3, 7, 12} in both canvases, in each form that is accepted.
EQUAL_FORMS = {
    "int64 (A,)": torch.tensor([0, 3, 7, 12]),
    "int64 (A,) unsorted": torch.tensor([12, 0, 7, 3]),
    "int64 (B, A)": torch.tensor([[3, 0, 12, 7], [0, 3, 7, 12]]),
    "int64 (B, A) padded": torch.tensor([[3, -1, 0, 12, 7, -1], [-1, 7, -1, 12, 0, 3]]),
    "bool (L,)": active_mask(torch.tensor([0, 3, 7, 12]), 1, 20)[0],
    "bool (B, L)": active_mask(torch.tensor([0, 3, 7, 12]), 2, 20),
}
# Canvases with different members: the second has one, the third none.
RAGGED = torch.tensor([[5, 1, 13], [-1, 7, -1], [-1, -1, -1]])


def attend(rows: Tensor, **options: object) -> Callable[..., Tensor]:
    return lambda q, k, v: active_query_attention(q, k, v, rows, **options)


def all_positions(batch: int, length: int) -> Tensor:
    return torch.arange(length).expand(batch, -1)


def padding_with_a_blind_canvas(length: int) -> Tensor:
    """Real keys of two canvases: the first lacks a few, the second has none at all."""
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, [1, length // 2, length - 1]] = False
    mask[1] = False
    return mask


# --- accuracy -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 63, 127, 129], ids="L={}".format)
def test_output_and_gradients_are_as_accurate_as_dense_attention(length, dtype, backend):
    *inputs, grad = random_qkv(heads=(8, 2), length=length, width=16, dtype=dtype)
    rows = torch.arange(length - 1, -1, -3)
    actual = output_and_gradients(attend(rows, backend=backend), inputs, grad)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows))


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (7, 1)], ids=["MHA 4", "GQA 8/2", "MQA 7/1"])
@pytest.mark.parametrize("count", [0, 1, 13, 63], ids="A={}".format)
def test_any_number_of_active_rows_and_any_head_grouping_is_right(count, heads):
    *inputs, grad = random_qkv(heads=heads, length=63)
    rows = torch.randperm(63, generator=torch.Generator().manual_seed(count))[:count]
    actual = output_and_gradients(attend(rows), inputs, grad)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_canvases_with_different_numbers_of_active_rows_are_right(dtype, backend):
    *inputs, grad = random_qkv(batch=3, dtype=dtype)
    actual = output_and_gradients(attend(RAGGED, backend=backend), inputs, grad)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, RAGGED))
    assert not actual[2][2].any(), "a canvas without active rows sends no gradient to its keys"


@pytest.mark.parametrize("key_length", [1, 5, 50], ids="Lk={}".format)
@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_may_be_fewer_or_more_than_queries(key_length, backend):
    *inputs, grad = random_qkv(key_length=key_length)
    rows = torch.tensor([4, 19, 0])
    actual = output_and_gradients(attend(rows, backend=backend), inputs, grad)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows))


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_any_key_the_output_and_the_gradients_are_zero(backend):
    *inputs, grad = random_qkv(key_length=0)
    out, dq, dk, dv = output_and_gradients(attend(RAGGED[:2], backend=backend), inputs, grad)
    assert not out.any()
    assert not dq.any()
    assert dk.shape == dv.shape == inputs[1].shape


@pytest.mark.parametrize("scale", [0.0, 0.05, 1.5, -0.7], ids="scale={}".format)
def test_a_given_scale_replaces_the_default(scale):
    *inputs, grad = random_qkv()
    rows = torch.tensor([4, 19, 0])
    actual = output_and_gradients(attend(rows, scale=scale), inputs, grad)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows), scale=scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 63, 127, 129], ids="L={}".format)
@pytest.mark.parametrize("padded", [False, True], ids=["all keys", "key padding"])
def test_the_library_forward_equals_scaled_dot_product_attention_bit_for_bit(padded, length, dtype):
    q, k, v, _ = random_qkv(heads=(8, 2), length=length, width=16, dtype=dtype)
    mask = (torch.arange(length) % 3 != 1).expand(2, -1) if padded else None
    sdpa_mask = None if mask is None else mask[:, None, None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=sdpa_mask, enable_gqa=True)
    options = {"key_padding_mask": mask, "backend": "library"}
    assert torch.equal(active_query_attention(q, k, v, torch.tensor([0]), **options), expected)


# --- index sets ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("form", EQUAL_FORMS)
def test_all_forms_of_an_index_set_give_the_same(form, backend):
    *inputs, grad = random_qkv(dtype=torch.float64)
    rows = torch.tensor([0, 3, 7, 12])
    actual = output_and_gradients(attend(EQUAL_FORMS[form], backend=backend), inputs, grad)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows))


@pytest.mark.parametrize(
    "rows",
    [
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(2, 0, dtype=torch.int64),
        torch.full((2, 3), -1),
        torch.zeros(20, dtype=torch.bool),
        torch.zeros(2, 20, dtype=torch.bool),
    ],
    ids=["int64 (0,)", "int64 (B, 0)", "int64 (B, A) all padding", "bool (L,)", "bool (B, L)"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_index_set_gives_the_output_and_zero_gradients(rows, backend):
    *inputs, grad = random_qkv()
    out, *gradients = output_and_gradients(attend(rows, backend=backend), inputs, grad)
    assert torch.equal(out, active_query_attention(*inputs, torch.arange(20), backend=backend))
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", EQUAL_FORMS)
def test_query_gradient_is_zero_at_inactive_rows_and_only_there(form, backend):
    *inputs, grad = random_qkv()
    _, dq, _, _ = output_and_gradients(attend(EQUAL_FORMS[form], backend=backend), inputs, grad)
    nonzero = (dq != 0).any(dim=-1).all(dim=1)
    assert torch.equal(nonzero, active_mask(EQUAL_FORMS[form], 2, 20))
    assert not keep_rows(dq, ~active_mask(EQUAL_FORMS[form], 2, 20)).any()


@pytest.mark.parametrize("junk", [1e4, torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [torch.tensor([3, 7]), RAGGED[:2]], ids=["shared", "ragged"])
def test_what_arrives_at_inactive_rows_is_ignored(rows, backend, junk):
    # The output is a constant there, so even a NaN that arrives must not reach q, k or v.
    # Padding reads row 0, which is not active here.
    *inputs, grad = random_qkv()
    spoilt = torch.where(active_mask(rows, 2, 20)[:, None, :, None], grad, junk)
    clean = output_and_gradients(attend(rows, backend=backend), inputs, grad)
    actual = output_and_gradients(attend(rows, backend=backend), inputs, spoilt)
    assert all(torch.equal(a, c) for a, c in zip(actual, clean, strict=True))


# --- strides ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"window": 4}], ids=["all keys", "window"])
def test_transposed_inputs_give_the_same_as_contiguous_ones(options):
    *inputs, grad = random_qkv(heads=(8, 2), length=63)
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    assert not transposed[0].is_contiguous()
    rows = torch.tensor([[9, 4, 62], [11, -1, -1]])
    expected = output_and_gradients(attend(rows, **options), inputs, grad)
    actual = output_and_gradients(attend(rows, **options), transposed, grad)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def expanded_last(x: Tensor) -> Tensor:
    return x[..., :1].expand_as(x)


# None has neighbours of the last dimension as neighbours in memory.
GAPPED = {
    "transposed width": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second element": lambda x: torch.stack((x, x + 1), dim=-1)[..., 0],
    "expanded width": expanded_last,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("layout", GAPPED)
@pytest.mark.parametrize("gapped", [(0,), (1,), (2,), (0, 1, 2)], ids=["q", "k", "v", "all"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_dimension_need_not_be_dense(backend, gapped, layout, dtype):
    if dtype == torch.float64 and backend not in IN_FLOAT64:
        pytest.skip("the native kernels take no float64")
    *inputs, grad = random_qkv(heads=(4, 2), dtype=dtype)
    given = [GAPPED[layout](x) if i in gapped else x for i, x in enumerate(inputs)]
    assert all(given[i].stride(-1) != 1 for i in gapped)
    rows = torch.tensor([[9, 4, 0], [11, -1, -1]])
    expected = output_and_gradients(
        attend(rows, backend=backend), [x.contiguous() for x in given], grad
    )
    actual = output_and_gradients(attend(rows, backend=backend), given, grad)
    for a, e in zip(actual, expected, strict=True):
        if backend == "reference":
            # Its products are PyTorch's, whose order of sums depends on the layout.
            torch.testing.assert_close(a, e)
        else:
            assert torch.equal(a, e)


def strided_gradients(grad: Tensor) -> dict[str, Tensor]:
    """Gradients that do not lie in memory as the output does."""
    return {
        "transposed": grad.transpose(1, 2).contiguous().transpose(1, 2),
        "transposed width": grad.transpose(2, 3).contiguous().transpose(2, 3),
        "every second element": torch.stack((grad, grad + 1), dim=-1)[..., 0],
        "expanded over heads": grad[:, :1].expand_as(grad),
        "expanded over rows": grad[:, :, :1].expand_as(grad),
        "expanded scalar": grad[:1, :1, :1, :1].expand_as(grad),
    }


@pytest.mark.parametrize("layout", strided_gradients(random_qkv()[3]))
@pytest.mark.parametrize("rows", [torch.tensor([3, 7]), RAGGED[:2]], ids=["shared", "ragged"])
def test_a_strided_output_gradient_gives_the_same_as_its_contiguous_copy(rows, layout):
    *inputs, grad = random_qkv()
    strided = strided_gradients(grad)[layout]
    assert not strided.is_contiguous()
    expected = output_and_gradients(attend(rows), inputs, strided.contiguous())
    actual = output_and_gradients(attend(rows), inputs, strided)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_the_gradient_of_a_sum_is_right():
    # sum() sends an expanded scalar, with all strides zero.
    *inputs, grad = random_qkv()
    rows = torch.tensor([3, 7])
    leaves = [x.requires_grad_() for x in inputs]
    out = active_query_attention(*leaves, rows)
    gradients = torch.autograd.grad(out.sum(), leaves)
    expected = (out.detach(), *gradients)
    assert_as_accurate_as_dense(expected, inputs, keep_rows(torch.ones_like(grad), rows))


@pytest.mark.parametrize("wanted", [0, 1, 2], ids=["q", "k", "v"])
def test_one_input_alone_may_require_a_gradient(wanted):
    *inputs, grad = random_qkv()
    rows = torch.tensor([3, 7])
    expected = output_and_gradients(attend(rows), inputs, grad)
    inputs[wanted].requires_grad_()
    out = active_query_attention(*inputs, rows)
    (actual,) = torch.autograd.grad(out, inputs[wanted], grad)
    assert torch.equal(actual, expected[1 + wanted])


# --- masks --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_keys_are_not_seen(dtype, backend):
    *inputs, grad = random_qkv(heads=(8, 2), length=63, dtype=dtype)
    padding = padding_with_a_blind_canvas(63)
    rows = torch.tensor([[9, 4, 62], [11, -1, -1]])
    options = {"key_padding_mask": padding, "backend": backend}
    actual = output_and_gradients(attend(rows, **options), inputs, grad)
    visible = visible_keys(all_positions(2, 63), 63, padding, None)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows), visible)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_canvas_without_visible_keys_gives_zeros_and_finite_gradients(dtype, backend):
    *inputs, grad = random_qkv(dtype=dtype)
    options = {"key_padding_mask": padding_with_a_blind_canvas(20), "backend": backend}
    rows = torch.tensor([[9, 4, 0], [11, -1, -1]])
    out, *gradients = output_and_gradients(attend(rows, **options), inputs, grad)
    assert not out[1].any()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not any(gradient[1].any() for gradient in gradients)
    assert all(gradient[0].any() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padded", [False, True], ids=["all keys", "key padding"])
@pytest.mark.parametrize("window", [0, 3, 1000, 2**63 - 1], ids="window={}".format)
@pytest.mark.parametrize("length", [40, 300], ids="L={}".format)
def test_a_window_limits_which_keys_are_seen(length, window, padded, backend):
    # 300 queries take two blocks of the windowed forward. With padding, whole
    # neighbourhoods are padding, so that some queries of each canvas see nothing.
    *inputs, grad = random_qkv(heads=(4, 2), length=length)
    padding = None
    if padded:
        padding = torch.ones(2, length, dtype=torch.bool)
        padding[0, 2:14] = padding[1, length - 12 :] = False
    rows = torch.tensor([[8, 0, length - 1, 30], [length - 6, 20, -1, -1]])
    options = {"window": window, "key_padding_mask": padding, "backend": backend}
    actual = output_and_gradients(attend(rows, **options), inputs, grad)
    visible = visible_keys(all_positions(2, length), length, padding, window)
    if padded and window < 1000:
        assert not visible[0, 0, 8].any()
        assert not visible[1, 0, length - 6].any()
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows), visible)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 5], ids="window={}".format)
@pytest.mark.parametrize("block_size", [1, 7, 256, 1000], ids="block={}".format)
def test_blocks_hide_the_keys_of_later_blocks(block_size, window, backend):
    length = 270
    *inputs, grad = random_qkv(heads=(4, 2), length=length)
    padding = torch.ones(2, length, dtype=torch.bool)
    padding[0, :3] = False
    rows = torch.tensor([[8, 0, length - 1, 30], [length - 6, 20, -1, -1]])
    options = {"window": window, "block_size": block_size, "key_padding_mask": padding}
    actual = output_and_gradients(attend(rows, backend=backend, **options), inputs, grad)
    visible = visible_keys(all_positions(2, length), length, padding, window, block_size)
    if block_size == 1:
        assert not visible[0, 0, 0].any()
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows), visible)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [[3, 0, 19], []], ids=["rows", "A=0"])
def test_gradients_of_keys_can_be_restricted_to_the_active_rows(rows, backend):
    *inputs, grad = random_qkv(heads=(4, 2))
    rows = torch.tensor(rows, dtype=torch.int64)
    options = {"backend": backend, "block_size": 6}
    out, dq, dk, dv = output_and_gradients(attend(rows, grad_rows="keys", **options), inputs, grad)
    expected = output_and_gradients(attend(rows, **options), inputs, grad)
    assert torch.equal(out, expected[0])
    assert torch.equal(dq, expected[1])
    assert torch.equal(dk, keep_rows(expected[2], rows))
    assert torch.equal(dv, keep_rows(expected[3], rows))


def test_an_unknown_choice_of_gradient_rows_is_refused():
    q, k, v, _ = random_qkv()
    with pytest.raises(ValueError, match=r"grad_rows must be 'queries' or 'keys', got 'values'"):
        active_query_attention(q, k, v, torch.tensor([1]), grad_rows="values")


@pytest.mark.parametrize("rows", ["shared", "ragged", "mask"])
def test_forward_and_backward_by_hand_equal_the_differentiable_call(rows):
    rows = {
        "shared": torch.tensor([4, 0, 7]),
        "ragged": torch.tensor([[4, 0, 7], [2, -1, -1]]),
        "mask": torch.arange(20) % 3 == 0,
    }[rows]
    *inputs, grad = random_qkv(heads=(4, 2))
    options = {"window": 9, "block_size": 8}
    expected = output_and_gradients(attend(rows, **options), inputs, grad)
    out, lse = active_query_forward(*inputs, **options)
    assert torch.equal(out, expected[0])
    visible = visible_keys(all_positions(2, 20), 20, None, 9, 8)
    keys = inputs[1].double().repeat_interleave(2, dim=1)
    scores = inputs[0].double() @ keys.transpose(-1, -2) / math.sqrt(8)
    truth = scores.masked_fill(~visible, -torch.inf).logsumexp(-1)
    assert lse.dtype == torch.float32
    assert_as_accurate("lse", lse, truth, truth.float(), FORWARD_FACTOR, largest(scores))
    gradients = active_query_backward(grad, *inputs, out, lse, rows, **options)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected[1:], strict=True))
    compact, dk, _ = active_query_backward(
        grad, *inputs, out, lse, rows, compact_dq=True, grad_rows="keys", **options
    )
    assert torch.equal(compact, take_rows(expected[1], pad_rows(rows).expand(2, -1)))
    assert torch.equal(dk, keep_rows(expected[2], rows))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", ["native", "library"])
def test_the_log_sum_exp_of_a_query_that_sees_no_key_is_minus_infinity(backend, dtype):
    if dtype == torch.float64 and backend not in IN_FLOAT64:
        pytest.skip("the native kernels take no float64")
    *inputs, grad = random_qkv(dtype=dtype)
    padding = padding_with_a_blind_canvas(20)
    _, lse = active_query_forward(*inputs, key_padding_mask=padding, backend=backend)
    assert lse[0].isfinite().all()
    assert (lse[1] == -torch.inf).all()
    no_keys = [inputs[0], inputs[1][:, :, :0], inputs[2][:, :, :0]]
    out, lse = active_query_forward(*no_keys, backend=backend)
    assert lse.dtype == dtype
    assert lse.shape == out.shape[:3]
    assert (lse == -torch.inf).all()
    rows = torch.tensor([2, 5])
    gradients = active_query_backward(grad, *no_keys, out, lse, rows, backend=backend)
    assert not any(gradient.any() for gradient in gradients)


def test_forward_and_backward_by_hand_refuse_what_they_cannot_do():
    *inputs, grad = random_qkv()
    out, lse = active_query_forward(*inputs)
    rows = torch.tensor([1])
    with pytest.raises(ValueError, match="reference path does not give the log-sum-exp"):
        active_query_forward(*inputs, backend="reference")
    with pytest.raises(ValueError, match="the reference has no backward of its own"):
        active_query_backward(grad, *inputs, out, lse, rows, backend="reference")
    with pytest.raises(ValueError, match=r"dout must have shape that of q = "):
        active_query_backward(grad[:, :, 1:], *inputs, out, lse, rows)
    with pytest.raises(ValueError, match=r"lse must have shape \(B, Hq, L\)"):
        active_query_backward(grad, *inputs, out, lse[:, :, 1:], rows)
    with pytest.raises(IndexError, match="active_idx must hold rows"):
        active_query_backward(grad, *inputs, out, lse, torch.tensor([20]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_windowed_forward_and_backward_are_right_in_half_precision(dtype):
    *inputs, grad = random_qkv(heads=(7, 1), length=270, dtype=dtype)
    rows = torch.tensor([255, 256, 3, 269])
    actual = output_and_gradients(attend(rows, window=5), inputs, grad)
    visible = visible_keys(all_positions(2, 270), 270, None, 5)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows), visible)


# --- derivatives --------------------------------------------------------------------

GRADCHECK_CASES = {
    "plain": {},
    "key padding": {"key_padding_mask": padding_with_a_blind_canvas(6)},
    "window": {"window": 2},
    "window and key padding": {"window": 1, "key_padding_mask": padding_with_a_blind_canvas(6)},
}


@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("case", GRADCHECK_CASES)
def test_gradients_at_active_rows_match_finite_differences(case, backend):
    *inputs, _ = random_qkv(heads=(4, 2), length=6, width=3, dtype=torch.float64)
    rows = torch.tensor([[4, 0, 2], [5, -1, -1]])
    options = GRADCHECK_CASES[case]
    mask = active_mask(rows, 2, 6)

    def active_output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = active_query_attention(q, k, v, rows, backend=backend, **options)
        return out.transpose(1, 2)[mask]

    assert torch.autograd.gradcheck(active_output, [x.requires_grad_() for x in inputs])


def test_the_reference_can_be_differentiated_twice():
    *inputs, _ = random_qkv(heads=(2, 1), length=4, width=2, dtype=torch.float64)
    rows = torch.tensor([3, 1])

    def active_output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return active_query_attention(q, k, v, rows, backend="reference")[:, :, rows]

    assert torch.autograd.gradgradcheck(active_output, [x.requires_grad_() for x in inputs])


# --- robustness ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"key_padding_mask": torch.ones(2, 129, dtype=torch.bool)}, {"window": 9}],
    ids=["all keys", "key padding", "window"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeated_runs_give_the_same_bits(dtype, options):
    *inputs, grad = random_qkv(heads=(8, 2), length=129, width=16, dtype=dtype)
    rows = torch.tensor([[128, 5, 77, -1], [0, 64, 3, 9]])
    run = partial(output_and_gradients, attend(rows, **options), inputs, grad)
    first = run()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
# PyTorch's CPU kernel, and with it dense attention, hides a NaN query among fewer than 16 keys.
@pytest.mark.parametrize("length", [17, 40], ids="L={}".format)
@pytest.mark.parametrize("spoilt", [0, 1, 2], ids=["q", "k", "v"])
@pytest.mark.parametrize(
    "options", [{}, {"padded": True}, {"window": 3}], ids=["all keys", "key padding", "window"]
)
def test_nan_in_the_inputs_is_not_hidden(options, spoilt, length, backend):
    *inputs, grad = random_qkv(length=length)
    inputs[spoilt][1, :, 2] = torch.nan
    if options.get("padded"):
        options = {"key_padding_mask": torch.ones(2, length, dtype=torch.bool)}
    rows = torch.tensor([2, 5])
    out, *gradients = output_and_gradients(attend(rows, backend=backend, **options), inputs, grad)
    # Every row that sees the NaN: its own query, or all queries near its key.
    near = torch.tensor([2]) if spoilt == 0 else torch.arange(6 if "window" in options else length)
    assert out[1, :, near].isnan().all()
    # dv = Pᵀ dout does not depend on v.
    spoilt_gradients = gradients[:2] if spoilt == 2 else gradients
    assert all(gradient[1].isnan().any() for gradient in spoilt_gradients)
    assert not out[0].isnan().any()
    assert not any(gradient[0].isnan().any() for gradient in gradients)


@pytest.mark.parametrize(
    ("window", "share"),
    [(None, 1 / 8), (8, 1 / 3), (1000, 1)],
    ids=["all keys", "window=8", "window=1000"],
)
def test_no_tensor_spans_all_pairs_of_rows(window, share):
    # A windowed forward holds a block of queries against the keys near it.
    length = 512
    *inputs, grad = random_qkv(batch=1, heads=(2, 1), length=length, width=16)
    with AllocationRecorder() as recorder:
        run = attend(torch.arange(8), window=window, backend="library")
        output_and_gradients(run, inputs, grad)
    elements, source = recorder.largest()
    assert elements < share * length * length, source
    assert any("flash_attention_for_cpu_backward" in func for func, _ in recorder.returned)


def test_the_allocation_recorder_sees_the_pairs_of_the_reference():
    length = 512
    *inputs, grad = random_qkv(batch=1, heads=(2, 1), length=length, width=16)
    with AllocationRecorder() as recorder:
        output_and_gradients(attend(torch.arange(8), backend="reference"), inputs, grad)
    assert recorder.largest()[0] >= length * length


@pytest.mark.parametrize("form", ["int64 (A,)", "int64 (B, A) padded"])
def test_until_the_backward_only_active_rows_of_queries_and_outputs_are_kept(form):
    q, k, v, _ = (x.requires_grad_() for x in random_qkv(length=20))
    kept: list[tuple[int, ...]] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        active_query_attention(q, k, v, EQUAL_FORMS[form], backend="library")
    assert [shape for shape in kept if 20 in shape] == [tuple(k.shape), tuple(v.shape)]


@st.composite
def attention_problems(draw: st.DrawFn) -> dict[str, object]:
    batch, groups, kv_heads = (draw(st.integers(1, 3)) for _ in range(3))
    length, width = draw(st.integers(1, 20)), draw(st.sampled_from([1, 2, 8]))
    window = draw(st.none() | st.integers(0, 22))
    key_length = length if window is not None else draw(st.integers(1, 20))
    flags = st.lists(st.booleans(), min_size=key_length, max_size=key_length)
    padding = draw(st.none() | st.lists(flags, min_size=batch, max_size=batch))
    members = st.lists(st.integers(0, length - 1), unique=True, max_size=length)
    sets = [draw(members) for _ in range(batch)]
    widest = max(map(len, sets)) + draw(st.integers(0, 2))
    return {
        "inputs": random_qkv(
            batch, (groups * kv_heads, kv_heads), length, key_length, width, torch.float64
        ),
        "rows": torch.tensor([s + [-1] * (widest - len(s)) for s in sets]).reshape(batch, widest),
        "padding": None if padding is None else torch.tensor(padding),
        "window": window,
    }


@settings(max_examples=25, deadline=None, derandomize=True)
@given(problem=attention_problems())
def test_random_shapes_index_sets_and_masks_agree_with_dense_attention(problem):
    *inputs, grad = problem["inputs"]
    rows, padding, window = problem["rows"].long(), problem["padding"], problem["window"]
    batch, _, length, _ = inputs[0].shape
    options = {"key_padding_mask": padding, "window": window}
    actual = output_and_gradients(attend(rows, **options), inputs, grad)
    visible = visible_keys(all_positions(batch, length), inputs[1].shape[2], padding, window)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows), visible)
