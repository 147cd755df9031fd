"""The top-k soft write by the native kernel, in every variant that this processor runs."""

from __future__ import annotations

import pytest
import torch
from error_bounds import FORWARD_FACTOR, assert_as_accurate, largest
from torch import Tensor

from boe_kernels import inject_soft_embeddings

pytestmark = pytest.mark.usefixtures("poisoned_allocations", "native_variant")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTH = 6
# Row 4 is written in the first canvas only.
ROWS = torch.tensor([[5, 0, 4], [0, -1, 2]])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def distinct(vocabulary: int, seed: int = 0) -> Tensor:
    """(2, 3, V), multiples of 1/16 in random order, no two the same in a row."""
    generator = torch.Generator().manual_seed(seed)
    ranks = [torch.randperm(vocabulary, generator=generator) for _ in range(6)]
    return (torch.stack(ranks).reshape(2, 3, vocabulary) + 1) / 16.0


def inject(
    values: Tensor,
    top_k: int,
    width: int = 5,
    dtype: torch.dtype = torch.float32,
    alpha: float = 0.3,
    **options: object,
) -> tuple[Tensor, ...]:
    """The canvas before, the table, the mask's embedding, the canvas after, and Δe."""
    embeds = random(2, LENGTH, width, dtype=dtype)
    table = random(values.shape[-1], width, seed=1, dtype=dtype)
    mask_embed = random(width, seed=2, dtype=dtype)
    canvas, delta = inject_soft_embeddings(
        embeds,
        ROWS,
        values,
        table,
        mask_embed,
        alpha,
        top_k,
        return_delta=True,
        backend="native",
        **options,
    )
    return embeds, table, mask_embed, canvas, delta


def largest_first(values: Tensor) -> Tensor:
    """Ids by value, of equal ones the lowest first."""
    return values.double().sort(dim=-1, descending=True, stable=True).indices


def defined(
    values: Tensor, top_k: int, embeds: Tensor, table: Tensor, mask_embed: Tensor, is_logits: bool
) -> tuple[Tensor, Tensor]:
    """Eqs. 10 and 12 with α = 0.3, position by position: the canvas and Δe."""
    dtype = embeds.dtype
    canvas, delta = embeds.clone(), torch.zeros(2, 3, embeds.shape[-1], dtype=dtype)
    for b, r in torch.argwhere(ROWS >= 0).tolist():
        kept = largest_first(values[b, r])[:top_k]
        p = values[b, r, kept].to(dtype)
        p = p.softmax(dim=-1) if is_logits else p / p.sum()
        delta[b, r] = p @ table[kept] - mask_embed
        canvas[b, ROWS[b, r]] = mask_embed + 0.3 * delta[b, r]
    return canvas, delta


def assert_follows_its_definition(
    values: Tensor, top_k: int, is_logits: bool, dtype: torch.dtype, width: int = 5
) -> None:
    *inputs, canvas, delta = inject(values, top_k, width, dtype, is_logits=is_logits)
    truth = defined(values.double(), top_k, *(x.double() for x in inputs), is_logits)
    plain = defined(values, top_k, *inputs, is_logits)
    size = largest(inputs[1]) + largest(inputs[2])
    size *= 1 + (largest(values) if is_logits else 0)
    for name, *results in zip(("canvas", "Δe"), (canvas, delta), truth, plain, strict=True):
        assert_as_accurate(name, *results, FORWARD_FACTOR, size)


# --- definition ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_logits", [False, True], ids=["probabilities", "logits"])
@pytest.mark.parametrize(
    ("vocabulary", "top_k"),
    [(1, 1), (31, 1), (32, 31), (33, 4), (129, 129), (4097, 3), (9001, 64)],
    ids="V,k={}".format,
)
def test_the_canvas_and_delta_follow_their_definition(vocabulary, top_k, is_logits, dtype):
    assert_follows_its_definition(distinct(vocabulary), top_k, is_logits, dtype)


@pytest.mark.parametrize("top_k", [1, 5000, 9001], ids="k={}".format)
@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_sorted_values_are_no_harder_than_others(order, top_k):
    values = distinct(9001).sort(dim=-1, descending=order == "descending").values
    assert_follows_its_definition(values, top_k, False, torch.float32)


@pytest.mark.parametrize("width", [1, 15, 4095, 4097, 9001], ids="D={}".format)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_width_is_written_whole(dtype, width):
    assert_follows_its_definition(distinct(40), 3, False, dtype, width)


@pytest.mark.parametrize("values_dtype", [torch.float64, *DTYPES], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_may_be_of_another_precision_than_the_canvas(dtype, values_dtype):
    values = (distinct(33) / 8).to(values_dtype)
    assert_follows_its_definition(values, 4, True, dtype)


@pytest.mark.parametrize("top_k", [1, 2, 3, 100, 4099], ids="k={}".format)
def test_of_equal_values_the_lowest_ids_are_kept(top_k):
    values = torch.zeros(2, 3, 9001)
    values[..., [8999, 17, 4096]] = 2.0
    values[..., ::3] += 1.0
    assert_follows_its_definition(values, top_k, False, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_results_are_rounded_to_half_precision_as_pytorch_rounds(dtype):
    # Δe is the difference of any two finite numbers: subnormal, a tie or an overflow, too.
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    number = bits.view(dtype)[bits.view(dtype).isfinite()]
    order = torch.randperm(number.numel(), generator=torch.Generator().manual_seed(0))
    mask_embed = number[order]
    _, delta = inject_soft_embeddings(
        torch.zeros(1, 1, number.numel(), dtype=dtype),
        torch.tensor([0]),
        torch.ones(1, 1, 1),
        number[None],
        mask_embed,
        0.0,
        1,
        return_delta=True,
        backend="native",
    )
    expected = (number.float() - mask_embed.float()).to(dtype)
    assert expected.isinf().any()
    assert torch.equal(delta[0, 0], expected)


# --- special values -----------------------------------------------------------------


def test_impossible_ids_have_no_part_even_if_fewer_than_k_are_possible():
    logits = torch.full((2, 3, 5000), -torch.inf)
    logits[..., [4999, 3]] = torch.tensor([1.0, 0.5])
    *_, delta = inject(logits, 4, is_logits=True)
    expected = inject(logits, 2, is_logits=True)[-1]
    assert torch.equal(delta, expected)
    assert delta.isfinite().all()


def test_k_larger_than_the_number_of_likely_ids_is_no_obstacle():
    certain = torch.zeros(2, 3, 50)
    certain[..., 7] = 1.0
    _, table, mask_embed, _, delta = inject(certain, 3)
    assert torch.equal(delta[ROWS >= 0], (table[7] - mask_embed).expand(5, -1))


SPOILT = {
    "NaN first": lambda z: z[0].fill_(torch.nan),
    "NaN in a later block": lambda z: z[4500].fill_(torch.nan),
    "NaN last": lambda z: z[-1].fill_(torch.nan),
    "all NaN": lambda z: z.fill_(torch.nan),
    "no possible id": lambda z: z.fill_(-torch.inf),
    "infinite": lambda z: z[3].fill_(torch.inf),
}


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("is_logits", [False, True], ids=["probabilities", "logits"])
def test_a_row_without_an_expectation_is_nan_and_only_that_row(is_logits, spoil):
    clean = distinct(5001)
    spoilt = clean.clone()
    SPOILT[spoil](spoilt[0, 1])
    *_, canvas, delta = inject(spoilt, 4, is_logits=is_logits)
    *_, expected_canvas, expected_delta = inject(clean, 4, is_logits=is_logits)
    assert canvas[0, 0].isnan().all()
    assert delta[0, 1].isnan().all()
    canvas[0, 0], delta[0, 1] = expected_canvas[0, 0], expected_delta[0, 1]
    assert torch.equal(canvas, expected_canvas)
    assert torch.equal(delta, expected_delta)


@pytest.mark.parametrize("junk", [1e4, torch.inf, torch.nan], ids=str)
def test_what_padding_holds_does_not_matter(junk):
    values = distinct(50)
    expected = inject(values, 4)
    values[1, 1] = junk
    assert all(torch.equal(a, e) for a, e in zip(inject(values, 4), expected, strict=True))
    assert not expected[-1][1, 1].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_untouched_rows_keep_their_bits_and_alpha_0_writes_the_mask_embedding(dtype):
    embeds, _, mask_embed, canvas, _ = inject(distinct(50), 4, dtype=dtype, alpha=0.0)
    for b in range(2):
        for row in range(LENGTH):
            expected = mask_embed if row in ROWS[b] else embeds[b, row]
            assert torch.equal(canvas[b, row], expected)


# --- layouts and determinism --------------------------------------------------------


def test_strided_inputs_give_the_same_as_their_contiguous_copies():
    wide = torch.full((2, 7, 9100), torch.nan)
    values = wide[:, 1::2, 50:9051].copy_(distinct(9001))
    wide_table = torch.full((9001, 20), torch.nan)
    table = wide_table[:, 8:13].copy_(random(9001, 5))
    mask_embed = random(5, 2)[:, 0]
    rows = ROWS.T.contiguous().T
    inputs = (random(5, LENGTH, 2).permute(2, 1, 0), rows, values, table, mask_embed)
    assert not any(x.is_contiguous() for x in inputs)
    options = {"alpha": 0.3, "top_k": 9, "return_delta": True, "backend": "native"}
    actual = inject_soft_embeddings(*inputs, **options)
    expected = inject_soft_embeddings(*(x.contiguous() for x in inputs), **options)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_values_and_table_that_are_not_contiguous_in_their_last_dimension_are_read_right():
    values, table = distinct(9001), random(9001, 5)
    options = {"alpha": 0.3, "top_k": 9, "backend": "native"}
    inputs = (random(2, LENGTH, 5), ROWS)
    expected = inject_soft_embeddings(*inputs, values, table, random(5), **options)
    values, table = (torch.stack((x, x + 1), dim=-1)[..., 0] for x in (values, table))
    actual = inject_soft_embeddings(*inputs, values, table, random(5), **options)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("rows", [0, 1], ids="R={}".format)
def test_shared_rows_and_none_at_all(rows):
    values, table, mask_embed = distinct(50)[:, :rows], random(50, 5), random(5, seed=1)
    embeds, shared = random(2, LENGTH, 5), torch.tensor([3, 1, 2])[:rows]
    options = {"alpha": 0.3, "top_k": 4, "backend": "native"}
    actual = inject_soft_embeddings(embeds, shared, values, table, mask_embed, **options)
    per_canvas = shared.expand(2, -1)
    expected = inject_soft_embeddings(embeds, per_canvas, values, table, mask_embed, **options)
    assert torch.equal(actual, expected)
    untouched = [row for row in range(LENGTH) if row not in shared]
    assert torch.equal(actual[:, untouched], embeds[:, untouched])


def test_the_number_of_threads_and_repetition_do_not_change_a_bit():
    before = torch.get_num_threads()
    values = random(2, 3, 60_000)
    try:
        torch.set_num_threads(1)
        expected = inject(values, 50, is_logits=True)
        for threads in (2, 3, 3, 8):
            torch.set_num_threads(threads)
            actual = inject(values, 50, is_logits=True)
            assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    finally:
        torch.set_num_threads(before)
