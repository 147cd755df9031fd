"""Soft writes by the Triton kernels: what is asked of every path, and what is their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import test_soft_embedding as every_path
import torch
from allocations import AllocationRecorder
from error_bounds import FORWARD_FACTOR, assert_as_accurate, largest
from test_soft_embedding import INDEX_SETS, LENGTH, RAGGED, SHARED, VOCABULARY, WIDTH, write

from boe_kernels._triton import recording
from boe_kernels.soft_embedding import triton as kernels
from boe_kernels.soft_embedding.triton import SoftWriteLaunch

pytestmark = pytest.mark.usefixtures("poisoned_allocations", "interpreted")

DTYPES = (torch.float32, torch.float16)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks along the width of 6 and along 4 kept ids."""
    launch = SoftWriteLaunch(warps=1, block_width=4, block_terms=2)
    for architecture in kernels.LAUNCH:
        monkeypatch.setitem(kernels.LAUNCH, architecture, launch)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_logits", [False, True], ids=["probabilities", "logits"])
@pytest.mark.parametrize("top_k", [None, 1, 4], ids="top_k={}".format)
@pytest.mark.parametrize("rows", INDEX_SETS)
def test_the_canvas_and_delta_follow_their_definition(rows, top_k, is_logits, dtype):
    every_path.test_the_canvas_and_delta_follow_their_definition(
        rows, top_k, is_logits, dtype, "triton"
    )


@pytest.mark.parametrize("top_k", [None, 5], ids="top_k={}".format)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_committed_launch_parameters_are_as_accurate(dtype, top_k, monkeypatch):
    monkeypatch.undo()
    assert kernels.LAUNCH["sm_80"].block_width > WIDTH
    every_path.test_the_canvas_and_delta_follow_their_definition(
        "ragged", top_k, True, dtype, "triton"
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", INDEX_SETS)
def test_untouched_rows_keep_their_bits(rows, dtype):
    every_path.test_untouched_rows_keep_their_bits(rows, dtype, "triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("top_k", [None, 4], ids="top_k={}".format)
def test_alpha_0_writes_the_mask_embedding_exactly(top_k, dtype):
    every_path.test_alpha_0_writes_the_mask_embedding_exactly(top_k, dtype, "triton")


@pytest.mark.parametrize("is_logits", [False, True], ids=["probabilities", "logits"])
def test_keeping_the_whole_vocabulary_equals_the_dense_form(is_logits):
    every_path.test_keeping_the_whole_vocabulary_equals_the_dense_form(
        torch.float32, is_logits, "triton"
    )


@pytest.mark.parametrize("top_k", [None, 3], ids="top_k={}".format)
def test_padding_may_hold_anything_and_has_a_delta_of_zero(top_k):
    case = write(RAGGED)
    values = case.values.masked_fill((RAGGED < 0).unsqueeze(-1), torch.nan)
    expected = case(0.3, top_k, return_delta=True, backend="triton")
    actual = replace(case, values=values)(0.3, top_k, return_delta=True, backend="triton")
    for result, right in zip(actual, expected, strict=True):
        assert torch.equal(result, right)
    assert not actual[1][RAGGED < 0].any()


@pytest.mark.parametrize("top_k", [2, VOCABULARY], ids="top_k={}".format)
def test_impossible_ids_weigh_nothing(top_k):
    case = write(SHARED, is_logits=True)
    values = case.values.clone()
    values[..., 3:] = -torch.inf
    table = case.table.clone()
    table[3:] = 1e4
    case = replace(case, values=values, table=table)
    actual = case.at_rows(case(1.0, top_k, is_logits=True, backend="triton"))
    kept = values[..., :3].double()
    kept = kept.masked_fill(kept < kept.sort().values[..., -min(top_k, 3), None], -torch.inf)
    truth = kept.softmax(dim=-1) @ table[:3].double()
    assert_as_accurate("written", actual, truth, truth.float(), FORWARD_FACTOR, largest(table[:3]))


LAYOUTS = {
    "embeds": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "rows": lambda x: torch.stack((x, x), dim=-1)[..., 0],
    "values": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "table": lambda x: x.T.contiguous().T,
    "mask_embed": lambda x: torch.stack((x, x), dim=-1)[:, 0],
}


@pytest.mark.parametrize("top_k", [None, 3], ids="top_k={}".format)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_strided_argument_gives_the_same_as_its_contiguous_copy(name, top_k):
    case = write(RAGGED)
    strided = LAYOUTS[name](getattr(case, name))
    assert not strided.is_contiguous()
    assert torch.equal(strided, getattr(case, name))
    expected = case(0.3, top_k, backend="triton")
    actual = replace(case, **{name: strided})(0.3, top_k, backend="triton")
    # The matrix product of the dense form may sum in another order.
    torch.testing.assert_close(actual, expected, rtol=0 if top_k else 1e-5, atol=0)


@pytest.mark.parametrize("top_k", [None, 4], ids="top_k={}".format)
def test_repeated_writes_give_the_same_bits(top_k):
    case = write(RAGGED)
    first = case(0.3, top_k, return_delta=True, backend="triton")
    for _ in range(2):
        for again, before in zip(
            case(0.3, top_k, return_delta=True, backend="triton"), first, strict=True
        ):
            assert torch.equal(again, before)


def test_the_gather_reads_table_rows_further_apart_than_32_bits_can_count():
    # 8 GiB of addresses, of which only the rows that are read are ever touched.
    stride = (1 << 31) + 16
    table = torch.empty(stride + WIDTH, dtype=torch.float16).as_strided((2, WIDTH), (stride, 1))
    case = write(SHARED, torch.float16)
    table.copy_(case.table[:2])
    case = replace(case, values=case.values[..., :2], table=case.table[:2])
    far = replace(case, table=table)
    assert torch.equal(far(0.3, 2, backend="triton"), case(0.3, 2, backend="triton"))


def test_the_canvas_is_copied_once():
    case = write(RAGGED)
    # Without the kernels, for which the interpreter has memory of its own.
    with recording("sm_80"), AllocationRecorder() as recorder:
        kernels.forward(
            case.embeds, case.rows, case.values, case.table, case.mask_embed, 0.5, None, False
        )
    canvases = [func for func, shape in recorder.returned if shape == (2, LENGTH, WIDTH)]
    assert canvases == ["aten.clone.default"]
