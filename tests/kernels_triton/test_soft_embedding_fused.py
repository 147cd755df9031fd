"""Dense soft writes by the fused Triton kernels, with the ids in parts and in one go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import test_soft_embedding as every_path
import torch
from allocations import AllocationRecorder
from error_bounds import FORWARD_FACTOR, assert_as_accurate, largest
from test_soft_embedding import (
    INDEX_SETS,
    LENGTH,
    RAGGED,
    SHARED,
    VOCABULARY,
    WIDTH,
    Write,
    defined,
    write,
)
from torch import Tensor
from triton.runtime import interpreter

from boe_kernels import decide, inject_soft_embeddings, observe_paths
from boe_kernels._dispatch import PATHS, Decision
from boe_kernels._triton import ARCHITECTURES, recording
from boe_kernels.soft_embedding import fused_launch, op
from boe_kernels.soft_embedding import triton_fused as kernels
from boe_kernels.soft_embedding.fused_launch import (
    TABLE,
    TILES,
    FusedTile,
    cut_of,
    read_tiles,
    tile_for,
    why_not_preferred,
    write_tiles,
)

pytestmark = pytest.mark.usefixtures("poisoned_allocations", "interpreted")

DTYPES = (torch.float32, torch.float16)
FUSED = "triton_fused"


@pytest.fixture(params=["in parts", "in one go"])
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Several tiles along 3 rows, 23 ids and a width of 6; returns the number of parts."""
    tile = FusedTile(slots=2, ids=4, width=4, warps=1, stages=1)
    for entries in TILES.values():
        for key in entries:
            monkeypatch.setitem(entries, key, tile)
    if request.param == "in parts":
        monkeypatch.setattr(fused_launch, "LEAST_PART", 4)
    return cut_of(torch.empty(VOCABULARY, WIDTH), tile).parts


in_small_tiles = pytest.mark.usefixtures("small_tiles")


def test_the_ids_are_cut_where_the_tests_mean_them_to_be(small_tiles, request):
    assert small_tiles == (3 if "in parts" in request.node.name else 1)


# --- what is asked of every path ----------------------------------------------------


@in_small_tiles
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_logits", [False, True], ids=["probabilities", "logits"])
@pytest.mark.parametrize("rows", INDEX_SETS)
def test_the_canvas_and_delta_follow_their_definition(rows, is_logits, dtype):
    every_path.test_the_canvas_and_delta_follow_their_definition(
        rows, None, is_logits, dtype, FUSED
    )


@pytest.mark.parametrize("is_logits", [False, True], ids=["probabilities", "logits"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_committed_tiles_are_as_accurate(dtype, is_logits):
    assert TILES["sm_80"]["32 bits, odd"].width > WIDTH
    every_path.test_the_canvas_and_delta_follow_their_definition(
        "ragged", None, is_logits, dtype, FUSED
    )


@pytest.mark.parametrize("vocabulary", [1, 63, 127, 129, 2049])
@pytest.mark.parametrize("width", [1, 63, 129])
def test_no_size_has_to_be_a_multiple_of_a_tile(width, vocabulary):
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    case = Write(
        draw(2, LENGTH, width), RAGGED, 3 * draw(2, 3, vocabulary), draw(vocabulary, width), None
    )
    case = replace(case, mask_embed=draw(width))
    arguments = (case.embeds, RAGGED, case.values, case.table, case.mask_embed, 0.3)
    options = {"is_logits": True, "return_delta": True}
    actual = inject_soft_embeddings(*arguments, **options, backend=FUSED)
    plain = inject_soft_embeddings(*arguments, **options, backend="reference")
    wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]
    truth = inject_soft_embeddings(*wide, **options, backend="reference")
    size = largest(case.table) + largest(case.mask_embed)
    for name, *results in zip(("canvas", "delta"), actual, truth, plain, strict=True):
        assert_as_accurate(name, *results, FORWARD_FACTOR, size)


@in_small_tiles
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", INDEX_SETS)
def test_untouched_rows_keep_their_bits(rows, dtype):
    every_path.test_untouched_rows_keep_their_bits(rows, dtype, FUSED)


@in_small_tiles
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alpha_0_writes_the_mask_embedding_exactly(dtype):
    every_path.test_alpha_0_writes_the_mask_embedding_exactly(None, dtype, FUSED)


@in_small_tiles
@pytest.mark.parametrize("junk", [1e4, torch.inf, torch.nan], ids=str)
def test_what_padding_holds_does_not_matter(junk):
    every_path.test_what_padding_holds_does_not_matter(FUSED, None, junk)


@in_small_tiles
def test_nan_is_written_where_it_belongs_and_nowhere_else():
    every_path.test_nan_is_written_where_it_belongs_and_nowhere_else(None, FUSED)


@in_small_tiles
@pytest.mark.parametrize("rows", ["shared", "ragged"])
def test_the_gradient_passes_at_untouched_rows_and_is_zero_at_written_ones(rows):
    every_path.test_the_gradient_passes_at_untouched_rows_and_is_zero_at_written_ones(rows, FUSED)


@in_small_tiles
@pytest.mark.parametrize("values", [torch.float64, torch.float32, torch.float16], ids=str)
def test_probabilities_may_be_of_another_precision_than_the_canvas(values):
    case = write(SHARED, torch.float16)
    case = replace(case, values=case.values.float().to(values))
    actual = case(0.3, backend=FUSED)
    wide = (x.double() if x.is_floating_point() else x for x in vars(case).values())
    truth, _ = defined(Write(*wide), 0.3, None, False, torch.float64)
    plain, _ = defined(case, 0.3, None, False, torch.float16)
    assert actual.dtype == torch.float16
    assert_as_accurate("canvas", actual, truth, plain, FORWARD_FACTOR)


# --- the softmax in the kernel ------------------------------------------------------


@in_small_tiles
def test_impossible_ids_weigh_nothing_wherever_they_stand():
    # Among them whole steps and parts: the first has nothing that is possible.
    case = write(SHARED, is_logits=True)
    values = torch.full_like(case.values, -torch.inf)
    values[..., 17:19] = case.values[..., 17:19]
    table = torch.full_like(case.table, 1e4)
    table[17:19] = case.table[17:19]
    actual = replace(case, values=values, table=table)
    written = actual.at_rows(actual(1.0, is_logits=True, backend=FUSED))
    truth = values[..., 17:19].double().softmax(dim=-1) @ table[17:19].double()
    assert_as_accurate(
        "written", written, truth, truth.float(), FORWARD_FACTOR, largest(table[17:19])
    )


@in_small_tiles
def test_a_row_without_a_distribution_gives_nan_and_leaves_the_others_alone():
    case = write(SHARED, is_logits=True)
    expected = case(0.3, is_logits=True, backend=FUSED)
    case.values[0, 1] = -torch.inf
    case.values[1, 2, 20] = torch.inf
    actual = case(0.3, is_logits=True, backend=FUSED)
    spoilt = torch.zeros(2, LENGTH, dtype=torch.bool)
    spoilt[0, SHARED[1]] = spoilt[1, SHARED[2]] = True
    assert actual[spoilt].isnan().all()
    assert torch.equal(actual[~spoilt], expected[~spoilt])


@in_small_tiles
@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4], ids=str)
def test_logits_of_any_scale_are_weighed_exactly(scale):
    case = write(SHARED, is_logits=True)
    case = replace(case, values=case.values * scale)
    actual = case(0.3, is_logits=True, return_delta=True, backend=FUSED)
    truth = defined(case, 0.3, None, True, torch.float64)
    plain = defined(case, 0.3, None, True, torch.float32)
    size = largest(case.table) + largest(case.mask_embed)
    for name, *results in zip(("canvas", "delta"), actual, truth, plain, strict=True):
        assert_as_accurate(name, *results, FORWARD_FACTOR, size)


# --- layouts, bits, memory ----------------------------------------------------------

LAYOUTS = {
    "embeds": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "rows": lambda x: torch.stack((x, x), dim=-1)[..., 0],
    "values": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "values, ids apart": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "table": lambda x: x.T.contiguous().T,
    "mask_embed": lambda x: torch.stack((x, x), dim=-1)[:, 0],
}


@in_small_tiles
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_strided_argument_gives_the_bits_of_its_contiguous_copy(name):
    case, which = write(RAGGED), name.partition(",")[0]
    strided = LAYOUTS[name](getattr(case, which))
    assert not strided.is_contiguous()
    assert torch.equal(strided, getattr(case, which))
    actual = replace(case, **{which: strided})(0.3, backend=FUSED)
    assert torch.equal(actual, case(0.3, backend=FUSED))


@pytest.fixture
def products_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: for NumPy's own products it matters where in its tile a row stands."""

    def create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        total = d.data.copy()
        for k in range(a.data.shape[-1]):
            total += a.data[:, k, None].astype(total.dtype) * b.data[k].astype(total.dtype)
        return interpreter.TensorHandle(total, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@in_small_tiles
@pytest.mark.usefixtures("products_in_order")
@pytest.mark.parametrize("is_logits", [False, True], ids=["probabilities", "logits"])
def test_a_row_gives_the_same_bits_alone_and_again_as_among_others(is_logits):
    rows = torch.stack((torch.arange(LENGTH), torch.arange(LENGTH).flip(0)))
    case = write(rows, is_logits=is_logits)
    together = case(0.3, is_logits=is_logits, backend=FUSED)
    assert torch.equal(case(0.3, is_logits=is_logits, backend=FUSED), together)
    for b, r in ((0, 0), (0, 5), (1, 8)):
        alone = Write(
            case.embeds[b : b + 1],
            rows[b : b + 1, r : r + 1],
            case.values[b : b + 1, r : r + 1],
            case.table,
            case.mask_embed,
        )(0.3, is_logits=is_logits, backend=FUSED)
        assert torch.equal(alone[0, rows[b, r]], together[b, rows[b, r]])


def test_table_rows_may_lie_further_apart_than_32_bits_can_count():
    # 8 GiB of addresses, of which only the rows that are read are ever touched.
    stride = (1 << 31) + 16
    table = torch.empty(stride + WIDTH, dtype=torch.float16).as_strided((2, WIDTH), (stride, 1))
    case = write(SHARED, torch.float16)
    table.copy_(case.table[:2])
    case = replace(case, values=case.values[..., :2], table=case.table[:2])
    assert torch.equal(replace(case, table=table)(0.3, backend=FUSED), case(0.3, backend=FUSED))


def test_rows_of_logits_may_lie_further_apart_than_32_bits_can_count():
    stride = (1 << 31) + 16
    case = write(SHARED[:2], torch.float16, is_logits=True)
    case = replace(case, embeds=case.embeds[:1], values=case.values[:1])
    memory = torch.empty(stride + VOCABULARY, dtype=torch.float16)
    far = memory.as_strided((1, 2, VOCABULARY), (2 * stride, stride, 1))
    far.copy_(case.values)
    options = {"is_logits": True, "backend": FUSED}
    assert torch.equal(replace(case, values=far)(0.3, **options), case(0.3, **options))


@pytest.mark.parametrize("is_logits", [False, True], ids=["probabilities", "logits"])
def test_nothing_of_the_size_of_the_logits_is_allocated(is_logits):
    vocabulary, rows = 32_000, 40
    embeds = torch.empty(1, 50, 64, dtype=torch.float16)
    values = torch.empty(1, rows, vocabulary, dtype=torch.float16)
    table = torch.empty(vocabulary, 64, dtype=torch.float16)
    index = torch.arange(rows)[None]
    # Without the kernels, for which the interpreter has memory of its own.
    with recording("sm_80") as launches, AllocationRecorder() as recorder:
        kernels.forward(embeds, index, values, table, table[0], 0.5, None, is_logits)
    parts = cut_of(table, tile_for(table)).parts
    assert [launch.kernel.__name__ for launch in launches] == ["_product_kernel", "_join_kernel"]
    shapes = [tuple(shape) for _, shape in recorder.returned]
    assert (parts, rows, 64) in shapes
    assert max(torch.Size(shape).numel() for shape in shapes) == parts * rows * 64
    assert parts * rows * 64 < values.numel() // 10
    assert shapes.count((1, 50, 64)) == 1, "the canvas is copied once"


# --- its choice ---------------------------------------------------------------------


def test_by_name_it_runs_and_says_so():
    case = write(SHARED)
    assert decide(op.NAME, FUSED, torch.device("cpu"), torch.float32) == Decision(op.NAME, FUSED)
    with observe_paths() as seen:
        case(backend=FUSED)
    assert seen == [(op.NAME, FUSED)]


def test_with_top_k_it_is_refused():
    with pytest.raises(ValueError, match=r"'triton_fused' cannot run .*top_k.*not implemented"):
        write(SHARED)(0.3, 4, backend=FUSED)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_auto_takes_it_only_where_the_table_prefers_it(architecture, monkeypatch):
    gpu, dtype = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(fused_launch, "named_architecture", lambda device: ("a", architecture))
    hopper = SimpleNamespace(major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: hopper)
    for key, tile in TILES[architecture].items():
        monkeypatch.setitem(TILES[architecture], key, replace(tile, preferred=False))
    decision = decide(op.NAME, "auto", gpu, dtype)
    assert decision.path == "triton"
    assert str(decision) == (
        f"{op.NAME}: triton (not triton_fused: no measurement on {architecture} (16 bits) has "
        "shown it to be faster than the vendor's product)"
    )
    assert decide(op.NAME, FUSED, gpu, dtype).path == FUSED
    preferred = replace(TILES[architecture]["16 bits"], preferred=True)
    monkeypatch.setitem(TILES[architecture], "16 bits", preferred)
    assert decide(op.NAME, "auto", gpu, dtype) == Decision(op.NAME, FUSED)
    assert decide(op.NAME, "auto", gpu, torch.float32).path == "triton"
    assert decide(op.TOP_K, "auto", gpu, dtype).path == "triton"
    assert why_not_preferred(gpu, dtype) is None


@pytest.mark.parametrize("table", [(2049, 64), (2048, 63)])
def test_auto_leaves_tables_of_odd_sizes_to_the_vendors_product(table, monkeypatch):
    gpu, dtype = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(fused_launch, "named_architecture", lambda device: ("sm_90", "sm_90"))
    hopper = SimpleNamespace(major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: hopper)
    preferred = replace(TILES["sm_90"]["16 bits"], preferred=True)
    monkeypatch.setitem(TILES["sm_90"], "16 bits", preferred)
    assert decide(op.NAME, "auto", gpu, dtype, table=(2048, 64)) == Decision(op.NAME, FUSED)
    decision = decide(op.NAME, "auto", gpu, dtype, table=table)
    assert decision.path == "triton"
    assert "no measurement on sm_90 (16 bits, odd)" in decision.rejected[FUSED]
    assert decide(op.NAME, FUSED, gpu, dtype, table=table).path == FUSED


@dataclass(frozen=True)
class Properties:
    """Of a device for which there are no launch parameters, as PyTorch tells them."""

    major: int = 12
    minor: int = 0
    shared_memory_per_block: int = 48 << 10
    shared_memory_per_block_optin: int = 99 << 10


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("preferred", [False, True])
def test_the_choice_can_be_traced_on_a_device_that_takes_anothers_parameters(
    preferred, monkeypatch, recwarn
):
    properties = Properties()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    tile = replace(TILES["sm_80"]["16 bits"], preferred=preferred)
    monkeypatch.setitem(TILES["sm_80"], "16 bits", tile)

    @torch.compile(fullgraph=True, backend="eager")
    def number_of_path(x: Tensor) -> Tensor:
        gpu, sizes = torch.device("cuda"), (x.shape[0], 64)
        path = decide(op.NAME, "auto", gpu, x.dtype, table=sizes).path
        return x.new_full((), PATHS.index(path))

    even, odd = (torch.zeros(size, dtype=torch.bfloat16) for size in (2048, 2049))
    assert PATHS[int(number_of_path(even))] == (FUSED if preferred else "triton")
    assert PATHS[int(number_of_path(odd))] == "triton"
    assert not [str(each.message) for each in recwarn if "cache" in str(each.message)]


def test_the_table_is_written_as_it_is_read(tmp_path):
    path = tmp_path / "tiles.json"
    write_tiles(read_tiles(), path)
    assert path.read_text(encoding="utf-8") == TABLE.read_text(encoding="utf-8")
    assert tuple(read_tiles(path)) == ARCHITECTURES
