"""Soft writes: expected embeddings blended into a canvas."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from error_bounds import FORWARD_FACTOR, assert_as_accurate, largest
from torch import Tensor

from boe_kernels import inject_soft_embeddings

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

BACKENDS = ("library", "reference")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LENGTH, WIDTH, VOCABULARY = 9, 6, 23
SHARED = torch.tensor([7, 0, 3])
RAGGED = torch.tensor([[7, 0, 3], [-1, 5, -1]])
INDEX_SETS = {
    "shared": SHARED,
    "ragged": RAGGED,
    "R=0": torch.zeros(0, dtype=torch.int64),
    "R=L": torch.arange(LENGTH).flip(0),
    "all padding": torch.full((2, 2), -1),
}


@dataclass(frozen=True)
class Write:
    """The tensors of one soft write."""

    embeds: Tensor
    rows: Tensor
    values: Tensor
    table: Tensor
    mask_embed: Tensor

    def __call__(self, alpha: float = 0.3, top_k: int | None = None, **options: object) -> Tensor:
        return inject_soft_embeddings(
            self.embeds,
            self.rows,
            self.values,
            self.table,
            self.mask_embed,
            alpha,
            top_k,
            **options,
        )

    def written(self) -> Tensor:
        """Which rows of the canvas are written, as bool (B, L)."""
        return (self.rows.expand(2, -1).unsqueeze(-1) == torch.arange(LENGTH)).any(dim=1)

    def at_rows(self, canvas: Tensor) -> Tensor:
        """The rows of a canvas (B, L, D) as (B, R, D); padding reads row 0."""
        return torch.stack([x[r] for x, r in zip(canvas, self.rows.expand(2, -1), strict=True)])


def write(
    rows: Tensor = RAGGED, dtype: torch.dtype = torch.float32, is_logits: bool = False
) -> Write:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    values = 2 * draw(2, rows.shape[-1], VOCABULARY)
    return Write(
        embeds=draw(2, LENGTH, WIDTH),
        rows=rows,
        values=values if is_logits else values.softmax(dim=-1),
        table=draw(VOCABULARY, WIDTH),
        mask_embed=draw(WIDTH),
    )


def defined(
    case: Write, alpha: float, top_k: int | None, is_logits: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Eqs. 10 and 12, position by position, in ``dtype``: the canvas and Δe."""
    table, mask_embed = case.table.to(dtype), case.mask_embed.to(dtype)
    canvas = case.embeds.to(dtype, copy=True)
    delta = torch.zeros(*case.values.shape[:2], WIDTH, dtype=dtype)
    for b, members in enumerate(case.rows.expand(2, -1).tolist()):
        for r, row in enumerate(members):
            if row < 0:
                continue
            p = case.values[b, r].to(dtype)
            p = p.softmax(dim=-1) if is_logits else p
            if top_k is not None:
                p = torch.where(p >= p.sort().values[-top_k], p, 0.0)
                p = p / p.sum()
            delta[b, r] = p @ table - mask_embed
            canvas[b, row] = mask_embed + alpha * delta[b, r]
    return canvas, delta


# --- definition ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_logits", [False, True], ids=["probabilities", "logits"])
@pytest.mark.parametrize("top_k", [None, 1, 4], ids="top_k={}".format)
@pytest.mark.parametrize("rows", INDEX_SETS)
def test_the_canvas_and_delta_follow_their_definition(rows, top_k, is_logits, dtype, backend):
    case = write(INDEX_SETS[rows], dtype, is_logits)
    # Distinct values: the definition of the k largest needs no rule for ties.
    if case.values.numel():
        order = case.values.argsort(dim=-1).argsort(dim=-1)
        case = replace(case, values=case.values * (1 + order.to(dtype) / 8))
    options = {"is_logits": is_logits, "return_delta": True, "backend": backend}
    actual = case(0.3, top_k, **options)
    truth = defined(case, 0.3, top_k, is_logits, torch.float64)
    plain = defined(case, 0.3, top_k, is_logits, dtype)
    size = largest(case.table) + largest(case.mask_embed)
    for name, *results in zip(("canvas", "delta"), actual, truth, plain, strict=True):
        assert_as_accurate(name, *results, FORWARD_FACTOR, size * largest(case.values))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", INDEX_SETS)
def test_untouched_rows_keep_their_bits(rows, dtype, backend):
    case = write(INDEX_SETS[rows], dtype)
    before = case.embeds.clone()
    canvas = case(backend=backend)
    untouched = ~case.written()
    assert torch.equal(canvas[untouched], before[untouched])
    assert torch.equal(case.embeds, before), "the canvas given is not modified"
    assert (canvas[~untouched] != before[~untouched]).any(dim=-1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("top_k", [None, 4], ids="top_k={}".format)
def test_alpha_0_writes_the_mask_embedding_exactly(top_k, dtype, backend):
    case = write(dtype=dtype)
    canvas = case(0.0, top_k, backend=backend)
    written = canvas[case.written()]
    assert torch.equal(written, case.mask_embed.expand_as(written))


@pytest.mark.parametrize("backend", BACKENDS)
def test_alpha_1_writes_the_expected_embedding(backend):
    case = write(SHARED, torch.float64)
    actual = case.at_rows(case(1.0, backend=backend))
    expected = case.values @ case.table
    assert_as_accurate("written", actual, expected, expected, FORWARD_FACTOR, largest(case.table))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_certain_id_writes_its_own_embedding(backend):
    case = write(SHARED, torch.float64)
    ids = torch.tensor([[4, 0, 22], [7, 7, 1]])
    certain = torch.nn.functional.one_hot(ids, VOCABULARY).double()
    for top_k in (None, 1, 3):
        case = replace(case, values=certain)
        actual = case.at_rows(case(1.0, top_k, backend=backend))
        expected = case.table[ids]
        assert_as_accurate("written", actual, expected, expected, FORWARD_FACTOR)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_logits", [False, True], ids=["probabilities", "logits"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_keeping_the_whole_vocabulary_equals_the_dense_form(dtype, is_logits, backend):
    case = write(dtype=dtype, is_logits=is_logits)
    dense = case(is_logits=is_logits, backend=backend)
    kept = case(0.3, VOCABULARY, is_logits=is_logits, backend=backend)
    size = largest(case.table) + largest(case.mask_embed)
    assert_as_accurate("canvas", kept, dense.double(), dense, FORWARD_FACTOR, size)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_more_ids_are_kept_the_closer_the_write_is_to_the_dense_one(backend):
    # With the unit vectors as table the distance is that of the distributions, which
    # shrinks with every id that is kept.
    case = write(SHARED, torch.float64)
    unit = torch.eye(VOCABULARY, dtype=torch.float64)
    case = replace(
        case,
        embeds=torch.zeros(2, LENGTH, VOCABULARY, dtype=torch.float64),
        table=unit,
        mask_embed=torch.zeros(VOCABULARY, dtype=torch.float64),
    )
    dense = case(1.0, backend=backend)
    distances = [
        (case(1.0, k, backend=backend) - dense).abs().sum().item() for k in range(1, VOCABULARY + 1)
    ]
    assert all(more < fewer for fewer, more in pairwise(distances))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top_k", [None, 3], ids="top_k={}".format)
def test_logits_equal_their_softmax_and_impossible_ids_have_no_part(top_k, backend):
    case = write(dtype=torch.float64, is_logits=True)
    impossible = torch.arange(VOCABULARY) % 2 == 1
    logits = case.values.masked_fill(impossible, -torch.inf)
    spoilt_table = torch.where(impossible[:, None], 1e6, case.table)
    from_logits = replace(case, values=logits, table=spoilt_table)
    from_probabilities = replace(case, values=logits.softmax(dim=-1))
    actual = from_logits(0.3, top_k, is_logits=True, backend=backend)
    expected = from_probabilities(0.3, top_k, backend=backend)
    assert_as_accurate("canvas", actual, expected, expected, FORWARD_FACTOR, largest(case.table))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top_k", [None, 4], ids="top_k={}".format)
def test_probabilities_may_be_of_another_precision_than_the_canvas(top_k, backend):
    case = write(SHARED, torch.bfloat16)
    wide = case.values.float() * 1.001
    actual = replace(case, values=wide)(0.3, top_k, backend=backend)
    assert actual.dtype == torch.bfloat16
    as_wide = Write(*(x.double() if x.is_floating_point() else x for x in vars(case).values()))
    truth, _ = defined(replace(as_wide, values=wide.double()), 0.3, top_k, False, torch.float64)
    plain, _ = defined(replace(case, values=wide), 0.3, top_k, False, torch.bfloat16)
    assert_as_accurate("canvas", actual, truth, plain, FORWARD_FACTOR)


# --- Δe and padding -----------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_delta_comes_only_when_asked_for_and_does_not_change_the_canvas(dtype, backend):
    case = write(dtype=dtype)
    alone = case(backend=backend)
    canvas, delta = case(return_delta=True, backend=backend)
    assert torch.equal(canvas, alone)
    assert delta.shape == (2, 3, WIDTH)
    assert delta.dtype == dtype
    assert torch.equal((delta != 0).all(dim=-1), case.rows >= 0), "zero at padding alone"
    assert torch.equal((delta != 0).any(dim=-1), case.rows >= 0), "zero at padding alone"


@pytest.mark.parametrize("junk", [1e4, torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("top_k", [None, 4], ids="top_k={}".format)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_padding_holds_does_not_matter(backend, top_k, junk):
    case = write(RAGGED)
    spoilt = torch.where((RAGGED < 0).unsqueeze(-1), junk, case.values)
    expected = case(0.3, top_k, return_delta=True, backend=backend)
    actual = replace(case, values=spoilt)(0.3, top_k, return_delta=True, backend=backend)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top_k", [None, 4], ids="top_k={}".format)
def test_nan_is_written_where_it_belongs_and_nowhere_else(top_k, backend):
    case = write(SHARED)
    case.values[1, 2, 5] = torch.nan
    canvas, delta = case(0.3, top_k, return_delta=True, backend=backend)
    nan_rows = torch.zeros(2, LENGTH, dtype=torch.bool)
    nan_rows[1, SHARED[2]] = True
    assert torch.equal(canvas.isnan().any(dim=-1), nan_rows)
    assert delta.isnan().any(dim=-1).nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_untouched_rows_stays_where_it_is(backend):
    case = write(RAGGED)
    case.embeds[0, 1] = torch.nan
    canvas = case(backend=backend)
    assert canvas.isnan().any(dim=-1).nonzero().tolist() == [[0, 1]]


# --- gradients ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", INDEX_SETS)
def test_the_gradient_passes_at_untouched_rows_and_is_zero_at_written_ones(rows, backend):
    case = write(INDEX_SETS[rows])
    case.embeds.requires_grad_()
    grad = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    case(backend=backend).backward(grad)
    expected = grad.masked_fill(case.written().unsqueeze(-1), 0.0)
    assert torch.equal(case.embeds.grad, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "grad",
    [
        torch.tensor(2.0).expand(2, LENGTH, WIDTH),
        torch.arange(2.0 * WIDTH).reshape(2, 1, WIDTH).expand(2, LENGTH, WIDTH),
        torch.arange(2.0 * LENGTH * WIDTH).reshape(2, WIDTH, LENGTH).transpose(1, 2),
    ],
    ids=["expanded scalar", "expanded over rows", "transposed"],
)
def test_a_strided_output_gradient_is_right(grad, backend):
    case = write(RAGGED)
    assert not grad.is_contiguous()
    case.embeds.requires_grad_()
    case(backend=backend).backward(grad)
    expected = grad.masked_fill(case.written().unsqueeze(-1), 0.0)
    assert torch.equal(case.embeds.grad, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_logits", [False, True], ids=["probabilities", "logits"])
@pytest.mark.parametrize("top_k", [None, 4], ids="top_k={}".format)
def test_nothing_but_the_canvas_gets_a_gradient(top_k, is_logits, backend):
    case = write(RAGGED, is_logits=is_logits)
    everything = (case.embeds, case.values, case.table, case.mask_embed)
    for tensor in everything:
        tensor.requires_grad_()
    canvas, delta = case(0.3, top_k, is_logits=is_logits, return_delta=True, backend=backend)
    assert not delta.requires_grad
    gradients = torch.autograd.grad(canvas.sum(), everything, allow_unused=True)
    assert gradients[0].any()
    assert gradients[1:] == (None, None, None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_written_rows_can_be_differentiated_after_a_detach(backend):
    case = write(SHARED)
    leaf = case(backend=backend).detach().requires_grad_()
    leaf.square().sum().backward()
    assert torch.equal(leaf.grad, 2 * leaf.detach())


# --- layouts and repetition ---------------------------------------------------------

LAYOUTS = {
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every second element": lambda x: torch.stack((x, x + 1), dim=-1)[..., 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["embeds", "values", "table", "mask_embed"])
@pytest.mark.parametrize("top_k", [None, 4], ids="top_k={}".format)
def test_strided_inputs_give_the_same_as_their_contiguous_copies(top_k, which, layout):
    case = write(RAGGED, torch.float64)
    if which == "mask_embed":
        layout = "every second element"
    strided = LAYOUTS[layout](getattr(case, which))
    assert not strided.is_contiguous()
    expected = case(0.3, top_k)
    actual = replace(case, **{which: strided})(0.3, top_k)
    size = largest(case.table) + largest(case.mask_embed)
    assert_as_accurate("canvas", actual, expected, expected, FORWARD_FACTOR, size)


@pytest.mark.parametrize("top_k", [None, 4], ids="top_k={}".format)
def test_repeated_runs_give_the_same_bits(top_k):
    case = write(RAGGED)
    first = case(0.3, top_k)
    assert all(torch.equal(case(0.3, top_k), first) for _ in range(5))
