"""DeferredRows: active rows that are bound between the forward and the backward."""

from __future__ import annotations

import pytest
import torch
from dense_attention import active_mask, output_and_gradients, random_qkv
from torch import Tensor

from boe_kernels import DeferredRows, active_query_attention

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

FORMS = {
    "int64 (A,)": torch.tensor([12, 0, 7, 3]),
    "int64 (B, A) padded": torch.tensor([[3, 0, 12], [7, -1, -1]]),
    "bool (L,)": active_mask(torch.tensor([0, 3, 7, 12]), 1, 20)[0],
    "bool (B, L)": active_mask(torch.tensor([[3, 0, 12], [7, -1, -1]]), 2, 20),
    "none": torch.zeros(0, dtype=torch.int64),
}
OPTIONS = {
    "plain": {},
    "key padding": {"key_padding_mask": (torch.arange(20) % 4 != 1).expand(2, -1)},
    "window": {"window": 3},
    "scale": {"scale": 0.1},
}


def equal(these: tuple[Tensor, ...], those: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


def leaves(inputs: list[Tensor]) -> list[Tensor]:
    return [x.detach().requires_grad_() for x in inputs]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_rows_bound_after_the_forward_give_the_same_as_rows_given_to_it(form, options):
    *inputs, grad = random_qkv()
    rows, options = FORMS[form], OPTIONS[options]
    deferred = DeferredRows()

    def attend_then_bind(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = active_query_attention(q, k, v, deferred, **options)
        deferred.bind(rows)
        return out

    expected = output_and_gradients(
        lambda q, k, v: active_query_attention(q, k, v, rows, **options), inputs, grad
    )
    assert equal(output_and_gradients(attend_then_bind, inputs, grad), expected)


def test_a_backward_without_bound_rows_raises_and_says_what_to_do():
    *inputs, _ = random_qkv()
    out = active_query_attention(*leaves(inputs), DeferredRows())
    with pytest.raises(RuntimeError, match=r"DeferredRows was not bound .* call bind\(rows\)"):
        out.sum().backward()


def test_a_forward_alone_needs_no_bound_rows():
    q, k, v, _ = random_qkv()
    out = active_query_attention(q, k, v, DeferredRows())
    assert torch.equal(out, active_query_attention(q, k, v, torch.tensor([1])))


def test_rebinding_changes_the_rows_of_the_next_backward():
    *inputs, grad = random_qkv()
    deferred, inputs = DeferredRows(), leaves(inputs)
    out = active_query_attention(*inputs, deferred)
    for rows in (torch.tensor([1, 2, 3]), torch.tensor([[5, -1], [19, 0]]), torch.tensor([1])):
        deferred.bind(rows)
        actual = torch.autograd.grad(out, inputs, grad, retain_graph=True)
        expected = torch.autograd.grad(active_query_attention(*inputs, rows), inputs, grad)
        assert equal(actual, expected)


def test_one_binding_serves_several_layers():
    *inputs, grad = random_qkv(heads=(4, 4))
    deferred, rows = DeferredRows(), torch.tensor([4, 11])

    def two_layers(active: Tensor | DeferredRows, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        inner = active_query_attention(q, k, v, active)
        return active_query_attention(inner + q, k, v, active)

    def deferred_layers(*qkv: Tensor) -> Tensor:
        out = two_layers(deferred, *qkv)
        deferred.bind(rows)
        return out

    expected = output_and_gradients(lambda *qkv: two_layers(rows, *qkv), inputs, grad)
    assert equal(output_and_gradients(deferred_layers, inputs, grad), expected)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([1, 2], TypeError, "the bound rows must be a tensor"),
        (torch.tensor([1.0]), TypeError, "the bound rows must be int64 or bool"),
        (torch.tensor([20]), IndexError, r"the bound rows must hold rows in \[0, 20\)"),
        (torch.tensor([-1]), IndexError, r"the bound rows must hold rows in \[0, 20\)"),
        (torch.tensor([3, 3]), ValueError, "the bound rows must not name a row twice"),
        (torch.zeros(3, 1, dtype=torch.int64), ValueError, r"the bound rows must have shape"),
        (torch.zeros(19, dtype=torch.bool), ValueError, "the bound rows must have shape"),
        (torch.zeros(1, dtype=torch.int64, device="meta"), ValueError, "the bound rows must be on"),
    ],
    ids=["list", "float", "too high", "negative", "twice", "batch", "mask length", "device"],
)
def test_bad_bound_rows_are_refused_in_the_backward(rows, error, message):
    *inputs, _ = random_qkv()
    deferred = DeferredRows()
    out = active_query_attention(*leaves(inputs), deferred)
    deferred.bind(rows)
    with pytest.raises(error, match=message):
        out.sum().backward()


def test_the_reference_refuses_deferred_rows():
    q, k, v, _ = random_qkv()
    with pytest.raises(ValueError, match="DeferredRows cannot be used with backend='reference'"):
        active_query_attention(q, k, v, DeferredRows(), backend="reference")


def test_second_derivatives_through_deferred_rows_are_refused():
    *inputs, _ = random_qkv()
    deferred, inputs = DeferredRows(), leaves(inputs)
    deferred.bind(torch.tensor([1]))
    out = active_query_attention(*inputs, deferred)
    (dq,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="active_query_attention_backward cannot be diff"):
        dq.sum().backward()
