"""Row index sets: which rows of a canvas an op works on."""

from __future__ import annotations

import pytest
import torch
from dense_attention import active_mask, put_rows, take_rows
from torch import Tensor

from boe_kernels._rows import (
    check_rows,
    gather_rows,
    pad_rows,
    replace_rows,
    spread_by_selection,
    spread_rows,
    zero_padding,
)

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

CANVAS = torch.arange(2.0 * 3 * 6 * 2).reshape(2, 3, 6, 2) + 1
INDEX_SETS = {
    "shared": torch.tensor([[4, 0, 5]]),
    "ragged": torch.tensor([[4, 0, 5], [-1, 3, -1]]),
    "row 0 and padding": torch.tensor([[0, -1], [-1, 0]]),
    "all padding": torch.full((2, 2), -1),
    "empty": torch.zeros(1, 0, dtype=torch.int64),
    "empty per canvas": torch.zeros(2, 0, dtype=torch.int64),
    "all": torch.tensor([[5, 4, 3, 2, 1, 0]]),
}


def values_for(rows: Tensor) -> Tensor:
    """Live rows (2, 3, A, 2), all different and different from the canvas."""
    count = rows.shape[1]
    return -torch.arange(2.0 * 3 * count * 2).reshape(2, 3, count, 2) - 1


@pytest.mark.parametrize("rows", INDEX_SETS)
def test_gathering_reads_the_rows_in_their_order(rows):
    rows = INDEX_SETS[rows]
    gathered = gather_rows(CANVAS, rows.clamp_min(0))
    both = rows.expand(2, -1)
    assert gathered.shape == (2, 3, rows.shape[1], 2)
    member = (both >= 0)[:, None, :, None]
    assert torch.equal(gathered.masked_fill(~member, 0.0), take_rows(CANVAS, both))


@pytest.mark.parametrize("rows", INDEX_SETS)
def test_replacing_writes_the_rows_and_keeps_the_others(rows):
    rows = INDEX_SETS[rows]
    before, values = CANVAS.clone(), values_for(rows)
    replaced = replace_rows(CANVAS, rows, values)
    assert torch.equal(replaced, put_rows(CANVAS, rows.expand(2, -1), values))
    assert torch.equal(CANVAS, before)


@pytest.mark.parametrize("rows", INDEX_SETS)
def test_spreading_puts_the_rows_over_zeros(rows):
    rows = INDEX_SETS[rows]
    both = rows.expand(2, -1)
    values = values_for(rows).masked_fill((both < 0)[:, None, :, None], 0.0)
    spread = spread_rows(values, rows, 6)
    assert torch.equal(spread, put_rows(torch.zeros_like(CANVAS), both, values))


@pytest.mark.parametrize("rows", INDEX_SETS)
def test_padding_becomes_zero_whatever_stood_there(rows):
    rows = INDEX_SETS[rows]
    values = torch.randn(2, 3, rows.shape[1], 2)
    poisoned = values.masked_fill((rows < 0)[:, None, :, None], torch.nan)
    expected = values.masked_fill((rows < 0)[:, None, :, None], 0.0)
    assert torch.equal(zero_padding(poisoned, rows), expected)


@pytest.mark.parametrize("rows", INDEX_SETS)
def test_selection_replaces_the_same_rows_as_the_kernel(rows):
    rows = INDEX_SETS[rows]
    values = torch.randn(2, 3, rows.shape[1], 2)
    spread, written = spread_by_selection(values, rows, CANVAS.shape[2])
    assert torch.equal(torch.where(written, spread, CANVAS), replace_rows(CANVAS, rows, values))


MASKS = {
    "some": torch.tensor([[True, False, True, True], [False, False, False, True]]),
    "one canvas without any": torch.tensor([[False] * 4, [True, False, False, True]]),
    "none": torch.zeros(2, 4, dtype=torch.bool),
    "all": torch.ones(2, 4, dtype=torch.bool),
    "no rows": torch.zeros(2, 0, dtype=torch.bool),
    "no canvases": torch.zeros(0, 4, dtype=torch.bool),
}


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_becomes_its_members_in_order_padded_to_the_widest(mask):
    mask = MASKS[mask]
    rows = pad_rows(mask)
    widest = max([0, *mask.sum(dim=-1).tolist()])
    expected = [
        (found := line.nonzero().flatten().tolist()) + [-1] * (widest - len(found)) for line in mask
    ]
    assert rows.dtype == torch.int64
    assert rows.tolist() == expected
    assert rows.shape == (mask.shape[0], widest)
    assert torch.equal(pad_rows(mask, widest), rows), "counted beforehand"


def test_a_shared_mask_becomes_a_shared_index_set():
    assert pad_rows(MASKS["some"][0]).tolist() == [[0, 2, 3]]


def test_integer_sets_keep_their_order_and_padding():
    assert pad_rows(torch.tensor([4, 0, 5])).tolist() == [[4, 0, 5]]
    ragged = INDEX_SETS["ragged"]
    assert torch.equal(pad_rows(ragged), ragged)


@pytest.mark.parametrize("rows", INDEX_SETS)
def test_good_index_sets_pass_in_every_form(rows):
    rows = INDEX_SETS[rows]
    forms = [active_mask(rows, 2, 6), rows.expand(2, -1)]
    if rows.shape[0] == 1:
        forms += [rows[0], active_mask(rows, 1, 6)[0]]
    for form in forms:
        check_rows("rows", form, 2, 6, like=CANVAS)


BAD_SETS = {
    "too high": (torch.tensor([0, 6]), IndexError, r"\[0, 6\), got values from 0 to 6"),
    "too high in a canvas": (
        torch.tensor([[0, -1], [9, 1]]),
        IndexError,
        r"\[0, 6\), or -1 for padding, got values from -1 to 9",
    ),
    "padding in a shared set": (torch.tensor([0, -1]), IndexError, r"\[0, 6\), got values"),
    "below the padding": (torch.tensor([[0, -2], [1, 2]]), IndexError, "-1 for padding, got"),
    "a row twice": (torch.tensor([3, 1, 3]), ValueError, "must not name a row twice"),
    "a row twice in a canvas": (torch.tensor([[0, 1], [2, 2]]), ValueError, "a row twice"),
    "int32": (torch.tensor([1], dtype=torch.int32), TypeError, "must be int64 or bool, got"),
    "float": (torch.tensor([1.0]), TypeError, "must be int64 or bool, got torch.float32"),
    "a scalar": (torch.tensor(1), ValueError, r"must have shape \(A,\) or \(B, A\) with B = 2"),
    "three dimensions": (torch.zeros(2, 1, 1, dtype=torch.int64), ValueError, "must have shape"),
    "another batch": (torch.zeros(3, 1, dtype=torch.int64), ValueError, r"got \(3, 1\)"),
    "a batch of one": (torch.zeros(1, 1, dtype=torch.int64), ValueError, r"got \(1, 1\)"),
    "a mask of another length": (torch.ones(5, dtype=torch.bool), ValueError, r"got \(5,\)"),
    "a mask of another batch": (torch.ones(3, 6, dtype=torch.bool), ValueError, r"got \(3, 6\)"),
    "another device": (torch.zeros(1, dtype=torch.int64, device="meta"), ValueError, "device"),
    "a list": ([1, 2], TypeError, "must be a tensor, got list"),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_bad_index_sets_are_refused_with_the_name_and_the_fault(case):
    rows, error, message = BAD_SETS[case]
    with pytest.raises(error, match=message) as raised:
        check_rows("the_rows", rows, 2, 6, like=CANVAS)
    assert "the_rows" in str(raised.value)


def test_a_mask_is_refused_where_the_order_of_the_rows_matters():
    with pytest.raises(TypeError, match=r"rows must be int64, got torch\.bool"):
        check_rows("rows", torch.ones(6, dtype=torch.bool), 2, 6, CANVAS, allow_mask=False)


@pytest.mark.parametrize("call", ["empty(3)", "empty_like(x)", "ones(3).new_empty(3)"])
def test_what_the_package_allocates_is_poisoned_in_these_tests(call):
    # The canary of the fixture: without it the suite would test less than it says.
    package = {"__name__": "boe_kernels.some_op", "torch": torch}
    floats = package | {"x": torch.ones(3)}
    integers = package | {"x": torch.ones(3, dtype=torch.int64)}
    assert eval(f"torch.{call}", floats).isnan().all()
    integer_call = call.replace("(3)", "(3, dtype=torch.int64)")
    assert (eval(f"torch.{integer_call}", integers) == torch.iinfo(torch.int64).min).all()
