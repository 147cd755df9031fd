"""A bias per key, in the attention ops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dense_attention import (
    DTYPES,
    assert_as_accurate_as_dense,
    assert_rows_are_as_accurate_as_dense,
    keep_rows,
    output_and_gradients,
    random_key_bias,
    random_qkv,
    take_rows,
    visible_keys,
)
from test_attention_mass import Problem as MassProblem
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from boe_kernels import (
    DeferredRows,
    _masked_sdpa,
    active_query_attention,
    active_query_backward,
    active_query_forward,
    active_row_attention,
    attention_mass,
    decide,
)
from boe_kernels._key_mask import as_key_mask, bias_of, seen_keys
from boe_kernels.attention_mass import op as mass_op
from boe_kernels.query_attention import op as query_op
from boe_kernels.row_attention import op as row_op

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

LENGTH = 40
RAGGED = torch.tensor([[5, -1, 1, 13, -1], [-1, -1, 7, -1, -1], [-1, -1, -1, -1, -1]])
BIAS = random_key_bias(3, LENGTH)
PADDING = torch.ones(3, LENGTH, dtype=torch.bool)
PADDING[0, [0, 17, LENGTH - 1]] = False
PADDING[2] = False
RESTRICTIONS: dict[str, dict[str, Any]] = {
    "bias": {},
    "bias, padding": {"key_padding_mask": PADDING},
    "bias, window": {"window": 5},
    "bias, padding, window, blocks": {"key_padding_mask": PADDING, "window": 7, "block_size": 9},
}
restrictions = pytest.mark.parametrize("options", RESTRICTIONS.values(), ids=list(RESTRICTIONS))


def paths(op: str) -> tuple[str, ...]:
    """Those that run here, besides Triton's."""
    found = []
    for path in ("native", "library", "reference"):
        try:
            found.append(decide(op, path, torch.device("cpu"), torch.float32).path)
        except ValueError:
            continue
    return tuple(found)


QUERY_PATHS = paths("active_query_attention")
ROW_PATHS = paths("active_row_attention")
MASS_PATHS = paths("attention_mass")


def attend(rows: Tensor, bias: Tensor, **options: Any) -> Callable[..., Tensor]:
    return lambda q, k, v: active_query_attention(q, k, v, rows, key_bias=bias, **options)


def usable(path: str, dtype: torch.dtype) -> bool:
    return not (path == "native" and dtype == torch.float64)


# --- accuracy -----------------------------------------------------------------------


@pytest.mark.parametrize("path", QUERY_PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 63, 129], ids="L={}".format)
def test_output_and_gradients_are_as_accurate_as_dense_attention(length, dtype, path):
    if not usable(path, dtype):
        pytest.skip("the native kernels take no float64")
    *inputs, grad = random_qkv(batch=1, heads=(8, 2), length=length, width=16, dtype=dtype)
    rows = torch.arange(length - 1, -1, -3)
    for bias in (random_key_bias(1, length), random_key_bias(1, length, dtype)):
        actual = output_and_gradients(attend(rows, bias, backend=path), inputs, grad)
        assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows), key_bias=bias)


@pytest.mark.parametrize("path", QUERY_PATHS)
@restrictions
def test_it_combines_with_all_that_hides_keys(options, path):
    *inputs, grad = random_qkv(batch=3, length=LENGTH)
    positions = torch.arange(LENGTH).expand(3, -1)
    visible = visible_keys(
        positions,
        LENGTH,
        options.get("key_padding_mask"),
        options.get("window"),
        options.get("block_size"),
    )
    actual = output_and_gradients(attend(RAGGED, BIAS, backend=path, **options), inputs, grad)
    kept = keep_rows(grad, RAGGED)
    assert_as_accurate_as_dense(actual, inputs, kept, visible, key_bias=BIAS)
    assert not actual[0][1].any(), "a canvas whose keys are all excluded gives zeros"


@pytest.mark.parametrize("path", ROW_PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@restrictions
def test_rows_of_a_frozen_canvas_are_right(options, dtype, path):
    q, k, v, grad = random_qkv(batch=3, length=LENGTH, dtype=dtype)
    q, grad, *live = (take_rows(x, RAGGED) for x in (q, grad, k.flip(2), v.flip(2)))
    actual = output_and_gradients(
        lambda *rows: active_row_attention(
            *rows, k, v, RAGGED, key_bias=BIAS, backend=path, **options
        ),
        (q, *live),
        grad,
    )
    assert_rows_are_as_accurate_as_dense(
        actual, (q, *live), (k, v), RAGGED, grad, key_bias=BIAS, **options
    )


@pytest.mark.parametrize("path", MASS_PATHS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@restrictions
def test_the_mass_is_what_its_definition_says(options, dtype, weighted, path):
    hidden = {name: value for name, value in options.items() if name != "key_padding_mask"}
    mask = options.get("key_padding_mask")
    case = MassProblem.of(
        RAGGED,
        batch=3,
        heads=(4, 2),
        dtype=dtype,
        weighted=weighted,
        mask=mask,
        bias=BIAS,
        **hidden,
    )
    case.check(path)


@pytest.mark.parametrize("path", QUERY_PATHS)
def test_gradients_of_the_active_keys_alone_are_those_of_all(path):
    *inputs, grad = random_qkv(batch=3, length=LENGTH)
    out, dq, dk, dv = output_and_gradients(attend(RAGGED, BIAS, backend=path), inputs, grad)
    alone = output_and_gradients(attend(RAGGED, BIAS, backend=path, grad_rows="keys"), inputs, grad)
    for actual, expected in zip(
        alone, (out, dq, keep_rows(dk, RAGGED), keep_rows(dv, RAGGED)), strict=True
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("path", [path for path in QUERY_PATHS if path != "reference"])
@restrictions
def test_forward_and_backward_by_hand_and_deferred_rows_equal_the_differentiable_call(
    options, path
):
    *inputs, grad = random_qkv(batch=3, length=LENGTH)
    options = {"key_bias": BIAS, "backend": path, **options}
    expected = output_and_gradients(
        lambda q, k, v: active_query_attention(q, k, v, RAGGED, **options), inputs, grad
    )
    out, lse = active_query_forward(*inputs, **options)
    by_hand = active_query_backward(grad, *inputs, out, lse, RAGGED, compact_dq=True, **options)
    deferred = DeferredRows()
    deferred.bind(RAGGED)
    later = output_and_gradients(
        lambda q, k, v: active_query_attention(q, k, v, deferred, **options), inputs, grad
    )
    _, dq, dk, dv = expected
    for actual, wanted in zip(
        (out, *by_hand, *later),
        (expected[0], take_rows(dq, RAGGED), dk, dv, *expected),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("path", QUERY_PATHS)
def test_a_strided_gradient_and_an_expanded_bias_give_the_same_as_their_copies(path):
    *inputs, grad = random_qkv(batch=3, length=LENGTH)
    one = BIAS[:1].expand(3, -1)
    grad = grad[:, :1, :, :1].expand_as(grad)
    apart = torch.stack([one, one], dim=-1)[..., 0]
    results = [
        output_and_gradients(attend(RAGGED, bias, backend=path), inputs, g)
        for bias, g in ((one, grad), (apart, grad), (one.contiguous(), grad.contiguous()))
    ]
    for found in results[:2]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[2], strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_library_forward_equals_scaled_dot_product_attention_bit_for_bit(dtype):
    q, k, v, _ = random_qkv(batch=1, length=LENGTH, dtype=dtype)
    bias = random_key_bias(1, LENGTH, dtype)
    expected = F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias[:, None, None], enable_gqa=True
    )
    actual = attend(torch.tensor([0]), bias, backend="library")(q, k, v)
    assert torch.equal(actual, expected)


# --- values at the ends of the range ------------------------------------------------


@pytest.mark.parametrize("path", QUERY_PATHS)
def test_minus_infinity_excludes_as_padding_does(path):
    *inputs, grad = random_qkv(batch=3, length=LENGTH)
    excluding = torch.zeros(3, LENGTH).masked_fill(~PADDING, -torch.inf)
    actual = output_and_gradients(attend(RAGGED, excluding, backend=path), inputs, grad)
    padded = output_and_gradients(
        lambda q, k, v: active_query_attention(
            q, k, v, RAGGED, key_padding_mask=PADDING, backend=path
        ),
        inputs,
        grad,
    )
    for found, expected in zip(actual, padded, strict=True):
        torch.testing.assert_close(found, expected)
    assert not actual[0][2].any()


@pytest.mark.parametrize("path", QUERY_PATHS)
@pytest.mark.parametrize("least", [-1e4, torch.finfo(torch.float32).min])
def test_finite_biases_however_low_exclude_beside_others_and_cancel_alone(least, path):
    *inputs, grad = random_qkv(batch=3, length=LENGTH)
    bias = torch.zeros(3, LENGTH)
    bias[0, 5:9] = least
    bias[1] = least
    actual = output_and_gradients(attend(RAGGED, bias, backend=path), inputs, grad)
    assert all(x.isfinite().all() for x in actual)
    hidden = torch.where(bias < 0, -torch.inf, 0.0)
    expected = output_and_gradients(attend(RAGGED, hidden, backend=path), inputs, grad)
    for found, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(found[0], wanted[0])
    assert actual[0][1].any(), "of keys that are all as low none is excluded"


@pytest.mark.parametrize("path", QUERY_PATHS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("key", [0, 20, 599])
def test_nan_and_infinity_reach_every_query_that_sees_the_key(key, value, path):
    # Longer than a block of keys of PyTorch's kernel.
    *inputs, grad = random_qkv(length=600)
    bias = torch.zeros(2, 600)
    bias[0, key] = value
    out, dq, dk, _ = output_and_gradients(
        attend(torch.tensor([19, 3]), bias, backend=path), inputs, grad
    )
    assert out[0].isnan().all()
    assert dq[0][:, [3, 19]].isnan().all()
    assert dk[0][:, key].isnan().all()
    assert all(x[1].isfinite().all() for x in (out, dq, dk))


@pytest.mark.parametrize("path", QUERY_PATHS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_the_bias_of_a_hidden_key_is_does_not_matter(value, path):
    *inputs, grad = random_qkv(batch=1, length=LENGTH)
    options = {"key_padding_mask": torch.arange(LENGTH)[None] != 20, "backend": path}
    bias = random_key_bias(1, LENGTH)
    spoilt = bias.clone()
    spoilt[0, 20] = value
    rows = torch.tensor([19, 3])
    actual = output_and_gradients(attend(rows, spoilt, **options), inputs, grad)
    expected = output_and_gradients(attend(rows, bias, **options), inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


# --- gradients of the bias ----------------------------------------------------------


def test_the_reference_differentiates_the_bias_through_the_active_rows():
    q, k, v, _ = (x.double() for x in random_qkv(batch=1, length=7, width=4))
    bias = torch.randn(1, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bias[0, 2] = -torch.inf
    padding = torch.arange(7)[None] != 5
    rows = torch.tensor([4, 1])

    def of_queries(free: Tensor) -> Tensor:
        whole = torch.cat([free, bias[:, 3:]], dim=1)
        options = {"key_padding_mask": padding, "backend": "reference"}
        return active_query_attention(q, k, v, rows, key_bias=whole, **options)[:, :, rows]

    def of_rows(free: Tensor) -> Tensor:
        whole = torch.cat([free, bias[:, 3:]], dim=1)
        live = (x[:, :, rows] for x in (q, k, v))
        return active_row_attention(*live, k, v, rows, key_bias=whole, backend="reference")

    for function in (of_queries, of_rows):
        free = bias[:, :2].clone().requires_grad_()
        # With the excluded key beside, which no small step reaches.
        joined = partial(lambda f, x: f(torch.cat([x, bias[:, 2:3]], dim=1)), function)
        assert torch.autograd.gradcheck(joined, free)
        assert torch.autograd.gradgradcheck(joined, free, fast_mode=True)
    leaf = bias.clone().requires_grad_()
    out = active_query_attention(q, k, v, rows, key_bias=leaf, backend="reference")
    (gradient,) = torch.autograd.grad(out[:, :, [0, 2]].sum() + 0 * leaf[0, 0], leaf)
    assert not gradient.any(), "outputs at inactive rows are constants"
    (gradient,) = torch.autograd.grad(
        active_query_attention(q, k, v, rows, key_bias=leaf, backend="reference").square().sum(),
        leaf,
    )
    assert gradient[0, 2] == 0, "an excluded key stays excluded"
    assert gradient[0, [0, 1, 3, 4]].all()


def test_vmap_runs_over_biases_in_the_reference():
    q, k, v, _ = random_qkv(batch=2, length=7)
    biases = torch.randn(3, 2, 7)
    rows = torch.tensor([4, 1])

    def of_bias(bias: Tensor) -> Tensor:
        return active_query_attention(q, k, v, rows, key_bias=bias, backend="reference")

    expected = torch.stack([of_bias(bias) for bias in biases])
    torch.testing.assert_close(torch.func.vmap(of_bias)(biases), expected)


def calls_with(bias: Tensor, **options: Any) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    q, k, v, _ = random_qkv(batch=3, length=LENGTH)
    live = tuple(take_rows(x, RAGGED) for x in (q, k, v))
    options = {"key_bias": bias, **options}
    yield (
        "active_query_attention",
        lambda: active_query_attention(q, k, v, RAGGED, **options),
    )
    yield (
        "active_row_attention",
        lambda: active_row_attention(*live, k, v, RAGGED, **options),
    )


def test_a_bias_that_requires_a_gradient_is_refused_and_the_reference_named():
    leaf = BIAS.clone().requires_grad_()
    for name, call in calls_with(leaf):
        message = f"key_bias must not require a gradient: {name} .*backend='reference'"
        with pytest.raises(ValueError, match=message):
            call()
        with torch.no_grad():
            assert not call().requires_grad
    for _, call in calls_with(leaf, backend="reference"):
        assert call().requires_grad


def test_no_gradient_passes_through_the_mass():
    case = MassProblem.of(RAGGED, batch=3, bias=BIAS.clone().requires_grad_())
    assert not case.run().requires_grad


# --- bad input ----------------------------------------------------------------------

BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "a list": ([0.0], TypeError, "must be a tensor, got list"),
    "bool": (PADDING, TypeError, r"must be float32 .* got torch.bool: a mask is a key_padding"),
    "of integers": (BIAS.long(), TypeError, "must be float32 or have the dtype of"),
    "of another width": (BIAS.double(), TypeError, "must be float32 or have the dtype of"),
    "too short": (BIAS[:, 1:], ValueError, r"must have shape \(B, Lk\) = \(3, 40\)"),
    "without batch": (BIAS[0], ValueError, r"must have shape \(B, Lk\)"),
    "of all pairs": (
        BIAS[:, None, None].expand(-1, 4, LENGTH, -1),
        ValueError,
        "must have .*: biases that differ from query to query or head to head are not supported",
    ),
    "elsewhere": (BIAS.to("meta"), ValueError, "must be on the device of"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_bias_is_refused_by_name(case):
    bias, error, message = BAD[case]
    q, k, v, grad = random_qkv(batch=3, length=LENGTH)
    lse = torch.zeros(3, 4, LENGTH)
    calls = [
        *(call for _, call in calls_with(bias)),
        lambda: active_query_forward(q, k, v, key_bias=bias),
        lambda: active_query_backward(grad, q, k, v, q, lse, RAGGED, key_bias=bias),
        lambda: attention_mass(q, k, lse, key_bias=bias),
    ]
    for call in calls:
        with pytest.raises(error, match=f"^key_bias {message}"):
            call()


# --- what PyTorch sees --------------------------------------------------------------


def op_calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    q, k, v, grad = random_qkv(batch=3, length=LENGTH)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    mask = as_key_mask(PADDING, BIAS)
    limits, rows = (mask, 0.3, 5, 4), RAGGED
    queries = (q.clone().requires_grad_(), k, v, rows, *limits, "queries", "library")
    out, lse = query_op.forward_op(q, k, v, rows, *limits, "queries", "library")
    backward = (grad, q, k, v, out, lse, rows, *limits, "queries", False, False, "library")
    live = tuple(take_rows(x, rows) for x in (q, k, v))
    of_rows = (*(x.clone().requires_grad_() for x in live), k, v, rows, *limits, "library")
    weighed = (live[0], k, take_rows(lse.unsqueeze(-1), rows)[..., 0], None, rows, *limits)
    return {
        "queries": (query_op.forward_op, queries),
        "queries, backward": (query_op.backward_op, backward),
        "rows": (row_op.forward_op, of_rows),
        "mass": (mass_op.forward_op, (*weighed, "library")),
    }


@pytest.mark.parametrize("name", op_calls())
def test_the_operators_pass_opcheck(name):
    op, arguments = op_calls()[name]
    assert set(torch.library.opcheck(op.op, arguments).values()) == {"SUCCESS"}


def test_it_compiles_into_one_graph(fresh_compiler):
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def squared(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        mask = bias > -1.0
        out = active_query_attention(q, k, v, rows, key_bias=bias, key_padding_mask=mask)
        return out.square().sum()

    for length in (20, 23):
        q, k, v, _ = random_qkv(length=length)
        rows, bias = torch.arange(0, length, 3), random_key_bias(2, length)
        leaf, eager = (q.clone().requires_grad_() for _ in range(2))
        (actual,) = torch.autograd.grad(squared(leaf, k, v, rows, bias), leaf)
        mask = bias > -1.0
        out = active_query_attention(eager, k, v, rows, key_bias=bias, key_padding_mask=mask)
        (expected,) = torch.autograd.grad(out.square().sum(), eager)
        torch.testing.assert_close(actual, expected)
    assert counter.frame_count == 1


# --- the key mask, and other devices ------------------------------------------------


def test_a_key_mask_holds_padding_and_bias():
    assert as_key_mask(None, None) is None
    assert as_key_mask(PADDING, None) is PADDING
    assert as_key_mask(None, BIAS) is BIAS
    both = as_key_mask(PADDING, BIAS)
    assert torch.equal(both, torch.where(PADDING, BIAS, -torch.inf))
    assert torch.equal(seen_keys(both)[:, 0, 0], PADDING & BIAS.isfinite())
    assert torch.equal(bias_of(both, torch.float64)[:, 0, 0], both.double())
    assert bias_of(BIAS.bfloat16(), torch.float32).dtype == torch.float32
    assert bias_of(PADDING, torch.float32) is bias_of(None, torch.float32) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)], ids=["MHA", "GQA"])
def test_the_composition_for_other_devices_rounds_the_bias_to_the_queries(heads, dtype):
    *inputs, grad = random_qkv(batch=3, heads=heads, length=9, key_length=LENGTH, dtype=dtype)
    bias = _masked_sdpa.keys_bias(BIAS, dtype)
    actual = output_and_gradients(
        lambda q, k, v: _masked_sdpa._public_sdpa(q, k, v, bias, 0.4), inputs, grad
    )
    rounded = BIAS.to(dtype)
    assert_as_accurate_as_dense(actual, inputs, grad, scale=0.4, key_bias=rounded)
