"""A linear layer with constant weights, and the product behind it."""

from __future__ import annotations

import pytest
import torch
from error_bounds import FORWARD_FACTOR, GRADIENT_FACTOR, assert_as_accurate
from torch import Tensor

from boe_kernels import _products, frozen_linear

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

BACKENDS = ("library", "reference")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x @ weight.t()
    return out if bias is None else out + bias


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", [(1,), (63,), (2, 5), (3, 1, 127), ()], ids=str)
def test_values_and_gradient_are_as_accurate_as_plain_pytorch(rows, has_bias, dtype, backend):
    x, weight = random(*rows, 33, dtype=dtype), random(17, 33, dtype=dtype, seed=1)
    bias = random(17, dtype=dtype, seed=2) if has_bias else None
    grad = random(*rows, 17, dtype=dtype, seed=3)
    leaf = x.clone().requires_grad_()
    out = frozen_linear(leaf, weight, bias, backend=backend)
    (dx,) = torch.autograd.grad(out, leaf, grad)

    def both(kind: torch.dtype) -> tuple[Tensor, Tensor]:
        wide = None if bias is None else bias.to(kind)
        return product(x.to(kind), weight.to(kind), wide), grad.to(kind) @ weight.to(kind)

    for name, mine, truth, plain, factor in zip(
        ("out", "dx"),
        (out.detach(), dx),
        both(torch.float64),
        both(dtype),
        (FORWARD_FACTOR, GRADIENT_FACTOR),
        strict=True,
    ):
        assert_as_accurate(name, mine, truth, plain, factor, float(truth.abs().max()) * 33**0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_and_expanded_tensors_are_read_as_they_are(backend):
    x, weight = random(33, 6).t(), random(33, 17, seed=1).t()
    leaf = x.requires_grad_()
    out = frozen_linear(leaf, weight, backend=backend)
    (dx,) = torch.autograd.grad(out.sum(), leaf)
    torch.testing.assert_close(out, x @ weight.t())
    torch.testing.assert_close(dx, weight.sum(dim=0).expand_as(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)], ids=str)
def test_no_rows_give_no_rows(shape, backend):
    leaf = torch.zeros(shape, requires_grad=True)
    out = frozen_linear(leaf, random(3, 4), random(3), backend=backend)
    assert out.shape == (*shape[:-1], 3)
    assert torch.autograd.grad(out.sum(), leaf)[0].shape == shape


def test_the_product_in_float32_is_onednns_where_there_is_one():
    def operators(dtype: torch.dtype) -> set[str]:
        with torch.profiler.profile() as profile:
            _products.linear(random(2, 4, dtype=dtype), random(3, 4, dtype=dtype))
        return {event.key for event in profile.key_averages()}

    quick = "mkldnn::_linear_pointwise"
    assert (quick in operators(torch.float32)) == torch.backends.mkldnn.is_available()
    assert quick not in operators(torch.float64)


def test_without_onednn_the_product_is_pytorchs_own(monkeypatch):
    monkeypatch.setattr(_products, "_has_onednn", lambda: False)
    x, weight, bias = random(2, 4), random(3, 4), random(3)
    assert torch.equal(
        _products.linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias)
    )


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_weights_that_want_a_gradient_are_refused(trained):
    tensors = {"weight": random(3, 4), "bias": random(3)}
    tensors[trained].requires_grad_()
    with pytest.raises(ValueError, match=f"{trained} must not require a gradient: frozen_linear"):
        frozen_linear(random(2, 4), **tensors)
    with torch.no_grad():
        frozen_linear(random(2, 4), **tensors)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0, random(3, 4)), TypeError, "x must be a tensor, got float"),
        ((torch.ones(2, 4, dtype=torch.int64), random(3, 4)), TypeError, "x must be float64"),
        ((torch.tensor(1.0), random(3, 4)), ValueError, "x must have at least 1 dimension"),
        ((random(2, 4), random(3, 5)), ValueError, r"weight must have shape \(N, K\) = \(3, 4\)"),
        ((random(2, 4), random(4)), ValueError, "weight must have 2 dimensions"),
        ((random(2, 4), random(3, 4).double()), TypeError, "weight must have the dtype of x"),
        ((random(2, 4), random(3, 4), random(4)), ValueError, r"bias must have shape \(N,\)"),
    ],
    ids=["type", "integers", "scalar", "width", "rank", "dtype", "bias"],
)
def test_bad_arguments_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        frozen_linear(*arguments)


def test_it_can_be_differentiated_any_number_of_times():
    x, weight, bias = (random(*shape).double() for shape in ((3, 4), (5, 4), (5,)))
    leaf = x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: frozen_linear(x, weight, bias), leaf)
    assert torch.autograd.gradgradcheck(lambda x: frozen_linear(x, weight, bias).sin(), leaf)

    def loss(x: Tensor) -> Tensor:
        return frozen_linear(x, weight, bias).square().sum()

    assert torch.equal(torch.func.grad(loss)(x), torch.autograd.grad(loss(leaf), leaf)[0])


def test_it_compiles_whole():
    weight, bias = random(5, 4), random(5)
    compiled = torch.compile(
        lambda x: frozen_linear(x, weight, bias).square().sum(), fullgraph=True, backend="aot_eager"
    )
    x = random(3, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(gradient, 2 * (x @ weight.t() + bias) @ weight)


def test_the_same_call_gives_the_same_bits():
    x, weight = random(63, 128), random(129, 128, seed=1)
    first = frozen_linear(x, weight)
    assert all(torch.equal(frozen_linear(x, weight), first) for _ in range(10))
