"""Statistics of a linear head, without holding its logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from allocations import AllocationRecorder
from categorical_statistics import statistics_by_torch
from error_bounds import FORWARD_FACTOR, GRADIENT_FACTOR, assert_as_accurate, largest
from torch import Tensor

from boe_kernels import EntropyStats, entropy_stats, linear_entropy
from boe_kernels.head_entropy import op

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

BACKENDS = ("library", "reference")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ROWS, WIDTH, VOCABULARY = 11, 8, 29


def head(
    *leading: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (..., D), weight (V, D) and bias (V,)."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden = draw(*(leading or (ROWS,)), WIDTH) * scale
    return hidden, draw(VOCABULARY, WIDTH), draw(VOCABULARY)


def logit_size(hidden: Tensor, weight: Tensor) -> float:
    """A bound on the logits and on every partial sum of them, and on ln p."""
    return largest(hidden.double().abs() @ weight.double().abs().T) + math.log(VOCABULARY)


def statistics_and_gradient(
    hidden: Tensor, *head: Tensor | None, grad: Tensor | None = None, **options: object
) -> tuple[EntropyStats, Tensor]:
    hidden = hidden.detach().requires_grad_()
    stats = linear_entropy(hidden, *head, **options)
    grad = torch.ones_like(stats.entropy) if grad is None else grad
    (gradient,) = torch.autograd.grad(stats.entropy, hidden, grad)
    return stats, gradient


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0], ids=["flat", "random", "peaked"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("suppressed", [None, torch.tensor([0, 28, 5])], ids=["all", "suppressed"])
def test_statistics_are_as_accurate_as_torch_distributions(
    suppressed, with_bias, scale, dtype, backend
):
    hidden, weight, bias = head(dtype=dtype, scale=scale)
    bias = bias if with_bias else None
    grad = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    options = {"suppressed_ids": suppressed, "block_elements": 4 * VOCABULARY}
    stats, gradient = statistics_and_gradient(
        hidden, weight, bias, grad=grad, backend=backend, **options
    )
    actual = stats._asdict() | {"gradient": gradient}

    def expected(dtype: torch.dtype) -> dict[str, Tensor]:
        leaf = hidden.to(dtype).detach().requires_grad_()
        constants = (weight.to(dtype), None if bias is None else bias.to(dtype))
        return statistics_by_torch(leaf, F.linear(leaf, *constants), suppressed, grad)

    truth, plain = expected(torch.float64), expected(dtype)
    logits = logit_size(hidden, weight)
    for name, right in truth.items():
        is_gradient = name == "gradient"
        assert_as_accurate(
            name,
            actual[name].detach(),
            right,
            plain[name],
            GRADIENT_FACTOR if is_gradient else FORWARD_FACTOR,
            logits * (largest(weight) * largest(grad) if is_gradient else 1.0),
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_gives_the_statistics_of_the_logits(backend):
    hidden, weight, bias = head(dtype=torch.float64)
    ids = torch.tensor([3])
    expected = entropy_stats(F.linear(hidden, weight, bias), suppressed_ids=ids)
    actual = linear_entropy(hidden, weight, bias, suppressed_ids=ids, backend=backend)
    for name in ("entropy", "logsumexp", "top1", "top2"):
        wanted = getattr(expected, name)
        assert_as_accurate(
            name, getattr(actual, name), wanted, wanted, FORWARD_FACTOR, logit_size(hidden, weight)
        )
    assert torch.equal(actual.argmax, expected.argmax)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_is_minus_the_covariance_of_logits_and_weights(backend):
    hidden, weight, bias = head(dtype=torch.float64)
    _, gradient = statistics_and_gradient(hidden, weight, bias, backend=backend)
    z = F.linear(hidden, weight, bias)
    p = z.softmax(dim=-1)
    mean_z, mean_w = (p * z).sum(dim=-1, keepdim=True), p @ weight
    covariance = torch.einsum("nv,nv,nvd->nd", p, z - mean_z, weight - mean_w[:, None])
    intermediate = largest(z) * largest(weight)
    assert_as_accurate(
        "gradient", gradient, -covariance, -covariance, GRADIENT_FACTOR, intermediate
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_match_finite_differences(backend):
    hidden, weight, bias = head(2, 2, dtype=torch.float64)
    options = {"suppressed_ids": torch.tensor([1]), "block_elements": 30, "backend": backend}
    assert torch.autograd.gradcheck(
        lambda h: linear_entropy(h, weight, bias, **options).entropy, hidden.requires_grad_()
    )


def test_the_reference_can_be_differentiated_twice():
    hidden, weight, bias = head(2, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda h: linear_entropy(h, weight, bias, backend="reference").entropy,
        hidden.requires_grad_(),
    )


# --- blocks -------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1, 28, 29, 30, 100, 319, 10**6], ids="{}".format)
def test_the_size_of_the_blocks_changes_nothing_but_rounding(elements):
    hidden, weight, bias = head(dtype=torch.float64)
    actual, gradient = statistics_and_gradient(hidden, weight, bias, block_elements=elements)
    expected, expected_gradient = statistics_and_gradient(hidden, weight, bias, backend="reference")
    for name in ("entropy", "logsumexp", "top1", "top2"):
        wanted = getattr(expected, name).detach()
        assert_as_accurate(
            name,
            getattr(actual, name).detach(),
            wanted,
            wanted,
            FORWARD_FACTOR,
            logit_size(hidden, weight),
        )
    assert torch.equal(actual.argmax, expected.argmax)
    intermediate = logit_size(hidden, weight) * largest(weight)
    assert_as_accurate(
        "gradient", gradient, expected_gradient, expected_gradient, GRADIENT_FACTOR, intermediate
    )


@pytest.mark.parametrize("elements", [1, 100, 250, 1000], ids="block_elements={}".format)
def test_no_more_logits_are_held_than_allowed(elements):
    hidden, weight = torch.randn(40, 2, requires_grad=True), torch.randn(100, 2)
    with AllocationRecorder(known=(hidden, weight)) as recorder:
        stats = linear_entropy(hidden, weight, block_elements=elements, backend="library")
        stats.entropy.sum().backward()
    held, source = recorder.largest()
    assert held <= max(elements, 100), source
    # One more row would be too much: the blocks are as large as they may be.
    assert held + 100 > elements, source


def test_the_allocation_recorder_sees_the_logits_of_the_reference():
    hidden, weight = torch.randn(40, 2, requires_grad=True), torch.randn(100, 2)
    with AllocationRecorder(known=(hidden, weight)) as recorder:
        linear_entropy(hidden, weight, backend="reference").entropy.sum().backward()
    assert recorder.largest()[0] == 40 * 100


def test_without_a_gradient_to_come_none_is_computed():
    hidden, weight, bias = head()

    def products(hidden: Tensor) -> int:
        with AllocationRecorder() as recorder:
            linear_entropy(hidden, weight, bias)
        return sum(
            func.startswith(("aten.mm", "aten.addmm", "mkldnn._linear"))
            for func, _ in recorder.returned
        )

    plain = products(hidden)
    assert plain == 1
    assert products(hidden.requires_grad_()) == 2
    with torch.no_grad():
        assert products(hidden) == plain


# --- shapes, layouts, gradients -----------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("leading", [(6,), (2, 3), (3, 1, 2)], ids=str)
def test_leading_dimensions_are_kept(leading, backend):
    hidden, weight, bias = head(*leading)
    stats, gradient = statistics_and_gradient(hidden, weight, bias, backend=backend)
    flat, flat_gradient = statistics_and_gradient(
        hidden.reshape(-1, WIDTH), weight, bias, backend=backend
    )
    for value, expected in zip(stats, flat, strict=True):
        assert value.shape == leading
        assert torch.equal(value.reshape(-1), expected)
    assert torch.equal(gradient.reshape(-1, WIDTH), flat_gradient)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_hidden_vector_gives_scalars(backend):
    hidden, weight, bias = head()
    stats, gradient = statistics_and_gradient(hidden[0], weight, bias, backend=backend)
    assert all(value.shape == () for value in stats)
    assert gradient.shape == (WIDTH,)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("leading", [(0,), (2, 0)], ids=str)
def test_no_rows_give_empty_results(leading, backend):
    hidden, weight, bias = head(*leading)
    stats, gradient = statistics_and_gradient(hidden, weight, bias, backend=backend)
    assert all(value.shape == leading for value in stats)
    assert gradient.shape == (*leading, WIDTH)


LAYOUTS = {
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every second element": lambda x: torch.stack((x, x + 1), dim=-1)[..., 0],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["hidden", "weight"])
def test_strided_inputs_give_the_same_as_their_contiguous_copies(which, layout):
    inputs = dict(zip(("hidden", "weight", "bias"), head(dtype=torch.float64), strict=True))
    strided = LAYOUTS[layout](inputs[which])
    assert not strided.is_contiguous()
    actual, gradient = statistics_and_gradient(*(inputs | {which: strided}).values())
    expected, wanted = statistics_and_gradient(*(inputs | {which: strided.contiguous()}).values())
    entropy = expected.entropy.detach()
    logits = logit_size(inputs["hidden"], inputs["weight"])
    assert_as_accurate("entropy", actual.entropy.detach(), entropy, entropy, FORWARD_FACTOR, logits)
    assert_as_accurate(
        "gradient", gradient, wanted, wanted, GRADIENT_FACTOR, logits * largest(inputs["weight"])
    )


def test_a_strided_output_gradient_gives_the_same_as_its_contiguous_copy():
    hidden, weight, bias = head()
    for grad in (torch.tensor([2.0]).expand(ROWS), torch.arange(2.0 * ROWS)[::2]):
        assert not grad.is_contiguous()
        _, gradient = statistics_and_gradient(hidden, weight, bias, grad=grad)
        _, expected = statistics_and_gradient(hidden, weight, bias, grad=grad.contiguous())
        assert torch.equal(gradient, expected)


def test_repeated_runs_give_the_same_bits():
    inputs = head()
    first, first_gradient = statistics_and_gradient(*inputs, block_elements=100)
    for _ in range(5):
        stats, gradient = statistics_and_gradient(*inputs, block_elements=100)
        assert all(torch.equal(a, b) for a, b in zip(stats, first, strict=True))
        assert torch.equal(gradient, first_gradient)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_row_is_nan_and_only_that_row(backend):
    hidden, weight, bias = head()
    clean, clean_gradient = statistics_and_gradient(hidden, weight, bias, backend=backend)
    hidden[4, 2] = torch.nan
    stats, gradient = statistics_and_gradient(hidden, weight, bias, backend=backend)
    others = torch.arange(ROWS) != 4
    for value, expected in zip(stats[:4], clean[:4], strict=True):
        assert value[4].isnan()
        assert torch.equal(value[others], expected[others])
    assert gradient[4].isnan().all()
    assert torch.equal(gradient[others], clean_gradient[others])


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_entropy_is_differentiable(backend):
    hidden, weight, bias = head()
    stats = linear_entropy(hidden.requires_grad_(), weight, bias, backend=backend)
    assert [value.requires_grad for value in stats] == [True, False, False, False, False]


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_a_head_that_requires_gradients_is_refused_unless_none_can_be_asked_for(which):
    inputs = dict(zip(("hidden", "weight", "bias"), head(), strict=True))
    inputs[which].requires_grad_()
    with pytest.raises(ValueError, match=r"(weight|bias) must not require a gradient"):
        linear_entropy(**inputs)
    with torch.no_grad():
        assert linear_entropy(**inputs).entropy.isfinite().all()
    entropy = linear_entropy(**inputs, backend="reference").entropy
    (gradient,) = torch.autograd.grad(entropy.sum(), inputs[which])
    assert gradient.any()


def test_a_backward_without_the_gradient_made_in_the_forward_says_so():
    hidden, weight, bias = head()
    stats = op.forward_op(hidden.requires_grad_(), weight, bias, None, 100, False, "library")
    with pytest.raises(RuntimeError, match="was called with with_gradient=False"):
        stats[0].sum().backward()
