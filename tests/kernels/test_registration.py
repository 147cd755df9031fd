"""The operators as PyTorch sees them: schemas, fakes, compilation and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from dense_attention import random_qkv
from error_bounds import GRADIENT_FACTOR, assert_as_accurate
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from boe_kernels import (
    DeferredRows,
    active_query_attention,
    active_row_attention,
    entropy_stats,
    frozen_linear,
    inject_soft_embeddings,
    linear_entropy,
)
from boe_kernels.entropy import op as entropy
from boe_kernels.frozen_linear import op as frozen
from boe_kernels.head_entropy import op as head_entropy
from boe_kernels.query_attention import op as query_attention
from boe_kernels.query_attention.library import keep_rows
from boe_kernels.row_attention import op as row_attention
from boe_kernels.soft_embedding import op as soft_embedding

RAGGED = torch.tensor([[4, 0, 7], [2, -1, -1]])
PADDING = torch.tensor([[True] * 6 + [False] * 4, [False] * 10])
MASKS = {"plain": (None, 0.3, None, None), "masked": (PADDING, 0.3, 3, 4)}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- opcheck ------------------------------------------------------------------------

# Per case: the op, and a function that makes its arguments.
OpCase = tuple[Any, Callable[[], tuple[Any, ...]]]


def laid_out_apart(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys as attention layers hand them over, values with gaps in their rows."""
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    return q, k, v.repeat_interleave(2, dim=-1)[..., ::2]


def attention_cases(path: str) -> dict[str, OpCase]:
    cases: dict[str, OpCase] = {}
    forms = {
        "shared": RAGGED[0],
        "ragged": RAGGED,
        "mask": torch.arange(10) % 4 == 0,
        "empty": torch.zeros(0, dtype=torch.int64),
    }
    for masks, options in MASKS.items():
        for form, rows in forms.items():

            def query_arguments(rows: Tensor = rows, options: tuple = options) -> tuple[Any, ...]:
                q, k, v = laid_out_apart(*random_qkv(length=10)[:3])
                options = (*options, "queries", path)
                return q.requires_grad_(), k.requires_grad_(), v, rows, *options

            def query_backward_arguments(
                arguments: Callable[[], tuple[Any, ...]] = query_arguments,
            ) -> tuple[Any, ...]:
                q, k, v, rows, *options, grad_rows, path = (
                    x.detach() if isinstance(x, Tensor) else x for x in arguments()
                )
                out, lse = query_attention.forward_op(q, k, v, rows, *options, grad_rows, path)
                inputs = (torch.ones_like(out), q, k, v, out, lse, rows)
                return *inputs, *options, grad_rows, False, False, path

            def kept_rows_arguments(
                arguments: Callable[[], tuple[Any, ...]] = query_backward_arguments,
            ) -> tuple[Any, ...]:
                dout, q, k, v, out, lse, rows, *options, _, path = arguments()
                q, out, lse = keep_rows(q, out, lse, rows)
                return dout, q, k, v, out, lse, rows, *options, True, path

            def compact_backward_arguments(
                arguments: Callable[[], tuple[Any, ...]] = query_backward_arguments,
            ) -> tuple[Any, ...]:
                return *arguments()[:-4], "keys", True, False, path

            name = f"{form}, {masks}"
            cases[f"query attention, {name}"] = (query_attention.forward_op, query_arguments)
            cases[f"query attention backward, {name}"] = (
                query_attention.backward_op,
                query_backward_arguments,
            )
            # How many rows a bool mask names is no matter of its shape.
            if form != "mask":
                cases[f"query attention backward, compact, {name}"] = (
                    query_attention.backward_op,
                    compact_backward_arguments,
                )
                cases[f"query attention backward, rows kept, {name}"] = (
                    query_attention.backward_op,
                    kept_rows_arguments,
                )

        for form, rows in (("shared", RAGGED[:1]), ("ragged", RAGGED)):

            def row_arguments(rows: Tensor = rows, options: tuple = options) -> tuple[Any, ...]:
                q, k, v = laid_out_apart(*random_qkv(length=10)[:3])
                live = tuple(x[:, :, :3].detach().requires_grad_() for x in (q, k, v))
                return *live, k, v, rows, *options, path

            def row_backward_arguments(
                arguments: Callable[[], tuple[Any, ...]] = row_arguments,
            ) -> tuple[Any, ...]:
                inputs = [x.detach() if isinstance(x, Tensor) else x for x in arguments()]
                out, lse, keys, values = row_attention.forward_op(*inputs)
                saved = (*inputs[:5], keys, values, out, lse, inputs[5])
                return torch.ones_like(out), *saved, *inputs[6:]

            name = f"{form}, {masks}"
            cases[f"row attention, {name}"] = (row_attention.forward_op, row_arguments)
            cases[f"row attention backward, {name}"] = (
                row_attention.backward_op,
                row_backward_arguments,
            )
    return cases


def vocabulary_cases() -> dict[str, OpCase]:
    ids = torch.tensor([1, 5])
    stats = entropy.forward_op(random(5, 7), ids, "library")
    head = (random(7, 4), random(7, seed=1))
    write = (RAGGED, random(2, 3, 7).softmax(-1), random(7, 4), random(4), 0.3)

    def soft_arguments(*options: Any) -> Callable[[], tuple[Any, ...]]:
        return lambda: (random(2, 10, 4).requires_grad_(), *write, *options, "library")

    return {
        "entropy": (entropy.forward_op, lambda: (random(5, 7).requires_grad_(), None, "library")),
        "entropy, suppressed, strided": (
            entropy.forward_op,
            lambda: (random(7, 5).T.requires_grad_(), ids, "library"),
        ),
        "entropy backward": (
            entropy.backward_op,
            lambda: (random(5), random(5, 7), stats[0], stats[1], ids, "library"),
        ),
        "linear entropy": (
            head_entropy.forward_op,
            lambda: (random(5, 4).requires_grad_(), *head, ids, 16, True, "library"),
        ),
        "linear entropy, strided": (
            head_entropy.forward_op,
            lambda: (random(4, 5).T.requires_grad_(), head[0], None, None, 16, True, "library"),
        ),
        "linear entropy, no gradient": (
            head_entropy.forward_op,
            lambda: (random(5, 4), *head, None, 16, False, "library"),
        ),
        "linear entropy backward": (
            head_entropy.backward_op,
            linear_entropy_backward_arguments,
        ),
        "frozen linear": (
            frozen.forward_op,
            lambda: (random(2, 5, 4).requires_grad_(), *head, "library"),
        ),
        "frozen linear, strided": (
            frozen.forward_op,
            lambda: (random(4, 5).T.requires_grad_(), random(4, 7).T, None, "library"),
        ),
        "soft embedding": (soft_embedding.forward_op, soft_arguments(None, False)),
        "soft embedding, top k": (soft_embedding.forward_op, soft_arguments(3, True)),
        "soft embedding backward": (
            soft_embedding.backward_op,
            lambda: (random(2, 10, 4), RAGGED),
        ),
    }


def linear_entropy_backward_arguments() -> tuple[Any, ...]:
    """Arguments by the schema's names, so that the op may take more than it does today."""
    known = {"grad_entropy": random(5), "gradient": random(5, 4), "hidden": random(5, 4)}
    schema = head_entropy.backward_op.op._schema
    return tuple(known[argument.name] for argument in schema.arguments)


OP_CASES = attention_cases("library") | vocabulary_cases()


@pytest.mark.parametrize("case", OP_CASES)
def test_opcheck_passes(case):
    op, arguments = OP_CASES[case]
    results = torch.library.opcheck(op.op, arguments())
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


# Forward only, so without a place in the table above; checked in the op's own test module.
FORWARD_ONLY = {"attention_mass", "sample_tokens", "tis_scores"}


def test_no_op_is_left_out_of_opcheck():
    defined = {
        name for name in torch._C._dispatch_get_all_op_names() if name.startswith("boe_kernels::")
    }
    checked = {op.op.name() for op, _ in OP_CASES.values()}
    checked = {name.removesuffix(".default") for name in checked}
    assert checked | {f"boe_kernels::{name}" for name in FORWARD_ONLY} == defined


# --- derivatives that there are, and derivatives that there are not -------------------


@dataclass(frozen=True)
class Scalar:
    """A public function as a scalar function of one tensor."""

    op: str
    function: Callable[..., Tensor]
    x: Tensor

    def __call__(self, x: Tensor, backend: str = "auto") -> Tensor:
        return self.function(x, backend=backend)


@dataclass(frozen=True)
class Output:
    """An op's differentiable output, as a function of the input that gets the gradient."""

    function: Callable[..., Tensor]
    x: Tensor
    backends: tuple[str, ...] = ("library", "reference")
    kept: bool = False
    """The paths but the reference need it for the backward."""

    def __call__(self, x: Tensor, backend: str) -> Tensor:
        return self.function(x, backend=backend)


def outputs() -> dict[str, Output]:
    q, k, v, _ = random_qkv(length=10, width=4)
    rows, deferred = torch.tensor([4, 0, 7]), DeferredRows()
    deferred.bind(rows)
    live = (k[:, :, :3], v[:, :, :3], k, v, rows)
    write = (rows, random(2, 3, 7).softmax(-1), random(7, 4), random(4), 0.3)
    canvas, head = random(2, 10, 4), random(7, 6)
    everywhere = ("native", "library", "reference")
    return {
        "query attention": Output(
            lambda x, **o: active_query_attention(x, k, v, rows, **o), q, everywhere
        ),
        "deferred rows": Output(
            lambda x, **o: active_query_attention(x, k, v, deferred, **o), q, everywhere[:2], True
        ),
        "row attention": Output(
            lambda x, **o: active_row_attention(x, *live, **o), q[:, :, :3], everywhere, True
        ),
        "entropy": Output(
            lambda x, **o: entropy_stats(x, **o).entropy, random(5, 6), everywhere, True
        ),
        "linear entropy": Output(
            lambda x, **o: linear_entropy(x, head, **o).entropy, random(5, 6), everywhere
        ),
        "soft embedding": Output(lambda x, **o: inject_soft_embeddings(x, *write, **o), canvas),
        "soft embedding, top-k": Output(
            lambda x, **o: inject_soft_embeddings(x, *write, 3, **o), canvas, everywhere
        ),
        "frozen linear of a row": Output(lambda x, **o: frozen_linear(x, head, **o), random(6)),
        "frozen linear": Output(lambda x, **o: frozen_linear(x, head, **o), random(2, 5, 6)),
    }


OUTPUTS = outputs()
every_output = pytest.mark.parametrize(
    ("output", "backend"),
    [
        pytest.param(output, backend, id=f"{name}, {backend}")
        for name, output in OUTPUTS.items()
        for backend in output.backends
    ],
)


@every_output
def test_an_output_can_be_modified_in_place_unless_the_backward_needs_it(output, backend):
    x = output.x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(output(x, backend).sum(), x)
    result = output(x, backend)
    result += 1
    result.mul_(2)
    if output.kept and backend != "reference":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(result.sum(), x)
        return
    (actual,) = torch.autograd.grad(result.sum(), x)
    assert torch.equal(actual, 2 * expected)


@every_output
def test_autocast_changes_nothing(output, backend):
    x = output.x.clone().requires_grad_()
    expected = output(x, backend)
    with torch.autocast("cpu", torch.bfloat16):
        actual = output(x, backend)
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)
    gradients = [torch.autograd.grad(result.sum(), x)[0] for result in (actual, expected)]
    assert torch.equal(*gradients)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "output",
    [output for output in OUTPUTS.values() if "reference" in output.backends],
    ids=[name for name, output in OUTPUTS.items() if "reference" in output.backends],
)
def test_the_reference_compiles_whole(output):
    compiled = torch.compile(output.function, fullgraph=True, backend="aot_eager")
    expected = output(output.x, "reference")
    torch.testing.assert_close(compiled(output.x, backend="reference"), expected)


def scalars() -> dict[str, Scalar]:
    """One per op, all but the last linear in the op's result: then a second derivative can
    only come from the op itself. The soft write is itself linear, hence a square."""
    q, k, v, weight = (x.double() for x in random_qkv(length=10, width=4))
    rows = torch.tensor([4, 0, 7])
    table, mask_embed = random(7, 4).double(), random(4).double()
    p = random(2, 3, 7).softmax(-1).double()
    per_row = random(5, seed=2).double()
    logits, head = 2 * random(5, 6).double(), (random(7, 6).double(), random(7).double())

    def query(x: Tensor, **options: str) -> Tensor:
        return (active_query_attention(x, k, v, rows, **options) * weight).sum()

    def row(x: Tensor, **options: str) -> Tensor:
        live = (x[:, :, :3], k[:, :, :3], v[:, :, :3])
        return (active_row_attention(*live, k, v, rows, **options) * weight[:, :, :3]).sum()

    def soft(x: Tensor, **options: str) -> Tensor:
        written = inject_soft_embeddings(x, rows, p, table, mask_embed, 0.3, **options)
        return written.square().sum()

    return {
        "query attention": Scalar("active_query_attention", query, q),
        "row attention": Scalar("active_row_attention", row, q),
        "entropy": Scalar(
            "entropy_stats", lambda x, **o: (entropy_stats(x, **o).entropy * per_row).sum(), logits
        ),
        "linear entropy": Scalar(
            "linear_entropy",
            lambda x, **o: (linear_entropy(x, *head, **o).entropy * per_row).sum(),
            logits,
        ),
        "soft embedding": Scalar("inject_soft_embeddings", soft, random(2, 10, 4).double()),
    }


SCALARS = scalars()
every_op = pytest.mark.parametrize("scalar", SCALARS.values(), ids=list(SCALARS))


@every_op
def test_torch_func_grad_equals_autograd(scalar):
    leaf = scalar.x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(scalar(leaf), leaf)
    assert expected.any()
    assert torch.equal(torch.func.grad(scalar)(scalar.x), expected)


@every_op
def test_torch_func_vjp_equals_autograd(scalar):
    leaf = scalar.x.clone().requires_grad_()
    cotangent = torch.tensor(-2.5, dtype=torch.float64)
    (expected,) = torch.autograd.grad(scalar(leaf), leaf, cotangent)
    value, pull_back = torch.func.vjp(scalar, scalar.x)
    assert torch.equal(value, scalar(scalar.x))
    assert torch.equal(pull_back(cotangent)[0], expected)


@every_op
def test_second_derivatives_are_refused_and_the_reference_named(scalar):
    leaf = scalar.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(leaf), leaf, create_graph=True)
    message = rf"{scalar.op}_backward cannot be differentiated.*backend='reference'"
    # Added to a term that can be differentiated: nothing may be left out silently.
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(gradient.square().sum() + leaf.sum(), leaf)


@every_op
def test_second_derivatives_by_torch_func_are_refused_and_the_reference_named(scalar):
    def size_of_the_gradient(x: Tensor) -> Tensor:
        return torch.func.grad(scalar)(x).square().sum()

    message = rf"{scalar.op}_backward cannot be differentiated.*backend='reference'"
    with pytest.raises(RuntimeError, match=message):
        torch.func.grad(size_of_the_gradient)(scalar.x)


@every_op
def test_the_reference_gives_second_derivatives(scalar):
    leaf = scalar.x.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: scalar(x, backend="reference"), leaf, fast_mode=True
    )


@every_op
def test_forward_mode_is_refused_and_the_reference_named(scalar):
    message = rf"{scalar.op} has no forward-mode derivative.*backend='reference'"
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(scalar.x, torch.ones_like(scalar.x))
        with pytest.raises(RuntimeError, match=message):
            scalar(dual)


@every_op
def test_forward_mode_by_torch_func_is_refused(scalar):
    with pytest.raises(RuntimeError, match="forward mode"):
        torch.func.jvp(scalar, (scalar.x,), (torch.ones_like(scalar.x),))


@every_op
def test_a_forward_level_without_tangents_is_no_obstacle(scalar):
    with forward_ad.dual_level():
        value = scalar(scalar.x)
    assert torch.equal(value, scalar(scalar.x))


@pytest.mark.parametrize("name", ["query attention", "row attention", "entropy", "linear entropy"])
def test_the_reference_gives_forward_mode_derivatives(name):
    scalar = SCALARS[name]
    tangent = random(*scalar.x.shape, seed=3).double()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(scalar.x, tangent)
        forward = forward_ad.unpack_dual(scalar(dual, backend="reference")).tangent
    terms = torch.func.grad(scalar)(scalar.x) * tangent
    expected, size = terms.sum(), terms.abs().sum().item()
    assert_as_accurate("tangent", forward, expected, expected, GRADIENT_FACTOR, size)


def test_a_backward_op_refuses_to_be_differentiated_by_itself():
    grad = random(2, 10, 4).requires_grad_()
    result = soft_embedding.backward_op(grad, RAGGED)
    with pytest.raises(RuntimeError, match="inject_soft_embeddings_backward cannot be diff"):
        result.sum().backward()


@pytest.mark.parametrize("case", [case for case in OP_CASES if "backward" not in case])
def test_only_the_first_result_of_an_op_can_be_differentiated(case):
    # The others, such as the log-sum-exp, would otherwise pass on a gradient of zero.
    op, arguments = OP_CASES[case]
    inputs = arguments()
    wanted = any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    results = op(*inputs)
    first, *others = (results,) if isinstance(results, Tensor) else results
    assert first.requires_grad == wanted
    assert not any(x.requires_grad for x in others)


@every_op
def test_no_graph_is_kept_where_no_gradient_is_wanted(scalar):
    with torch.no_grad():
        assert scalar(scalar.x.clone().requires_grad_()).grad_fn is None
    assert scalar(scalar.x).grad_fn is None
    with torch.inference_mode():
        assert torch.equal(scalar(scalar.x), scalar(scalar.x.clone()))


# --- torch.compile --------------------------------------------------------------------

COUNTS = (2, 5, 7, 9)


@dataclass(frozen=True)
class Compiled:
    """A function to compile, and its arguments for a number of rows.

    No other dimension is of a size in ``COUNTS``, which the compiler would take for one.
    """

    function: Callable[..., Tensor]
    arguments: Callable[[int], tuple[Tensor, ...]]


def compiled_cases() -> dict[str, Compiled]:
    batch, length = 3, 20
    q, k, v, weight = random_qkv(batch=batch, heads=(8, 4), length=length, width=16)
    padding = torch.arange(length).expand(batch, -1) % 6 != 1

    def query(**options: Any) -> Callable[..., Tensor]:
        def loss(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
            return (active_query_attention(q, k, v, rows, **options) * weight).sum()

        return loss

    def row(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
        out = active_row_attention(
            q, k, v, k.new_ones(3, 4, 20, 16), v.new_ones(3, 4, 20, 16), rows
        )
        return out.square().sum()

    def soft(embeds: Tensor, rows: Tensor, p: Tensor) -> Tensor:
        table, mask_embed = p.new_ones(11, 16), p.new_ones(16)
        return inject_soft_embeddings(embeds, rows, p, table, mask_embed, 0.3, 3).square().sum()

    def shared(count: int) -> tuple[Tensor, ...]:
        return q, k, v, torch.arange(count).flip(0)

    def per_canvas(count: int) -> tuple[Tensor, ...]:
        rows = torch.arange(count).repeat(batch, 1)
        rows[0, 1] = -1
        return q, k, v, rows

    def mask(count: int) -> tuple[Tensor, ...]:
        return q, k, v, torch.arange(length) < count

    return {
        "query attention": Compiled(query(), shared),
        "query attention, (B, A)": Compiled(query(), per_canvas),
        "query attention, bool": Compiled(query(), mask),
        "query attention, masked": Compiled(query(key_padding_mask=padding, window=3), shared),
        "row attention": Compiled(
            row,
            lambda count: (*(x[:, :, :count].clone() for x in (q, k, v)), torch.arange(count)),
        ),
        "entropy": Compiled(
            lambda x: entropy_stats(x).entropy.square().sum(), lambda n: (random(n, 11),)
        ),
        "linear entropy": Compiled(
            lambda x: linear_entropy(x, x.new_ones(11, 16).cumsum(0).sin()).entropy.square().sum(),
            lambda n: (random(n, 16),),
        ),
        "soft embedding": Compiled(
            soft, lambda n: (random(3, 20, 16), torch.arange(n), random(3, n, 11).softmax(-1))
        ),
    }


def value_and_gradient(
    function: Callable[..., Tensor], arguments: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    leaf = arguments[0].detach().requires_grad_()
    value = function(leaf, *arguments[1:])
    return value.detach(), *torch.autograd.grad(value, leaf)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("case", compiled_cases())
def test_it_compiles_whole_once_for_every_number_of_rows(case):
    case = compiled_cases()[case]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(case.function, fullgraph=True, dynamic=True, backend=counter)
    for count in COUNTS:
        arguments = case.arguments(count)
        actual = value_and_gradient(compiled, arguments)
        expected = value_and_gradient(case.function, arguments)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert counter.frame_count == 1, "a new number of rows must not compile anything"


def test_deferred_rows_refuse_torch_func_transforms():
    q, k, v, _ = random_qkv()
    deferred = DeferredRows()
    deferred.bind(torch.tensor([1]))
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: active_query_attention(x, k, v, deferred).sum())(q)
