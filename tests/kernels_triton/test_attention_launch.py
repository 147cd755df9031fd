"""Launch parameters of the attention kernels, and how many kernels a call launches."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from attention_shapes import SHAPES, force
from hypothesis import given, settings
from hypothesis import strategies as st
from launched_attention import backward, canvas, forward, index_set, mass, meta, replay

from boe_kernels import _triton
from boe_kernels._attention_launch import (
    ARCHITECTURES,
    DTYPES_AND_HEAD_DIMS,
    HEAD_DIMS,
    Cut,
    Tile,
    constants,
    first_occupying,
    tile_key,
    tiles_for,
)
from boe_kernels._triton import recording
from boe_kernels.query_attention import triton as query_kernels
from boe_kernels.row_attention import triton as row_kernels

KEYS = [
    tile_key(dtype, width, hidden)
    for dtype, width in DTYPES_AND_HEAD_DIMS
    for hidden in (False, True)
]


# --- the table ----------------------------------------------------------------------


def test_the_table_has_every_architecture():
    assert tuple(ARCHITECTURES) == _triton.ARCHITECTURES


@pytest.mark.parametrize("architecture", _triton.ARCHITECTURES)
def test_every_kernel_has_a_tile_for_every_width_and_dtype(architecture):
    table = ARCHITECTURES[architecture].tiles
    for kernel, tiles in table.items():
        assert set(tiles) == set(KEYS), kernel
        # One pass is an option: what does not fit it is split.
        assert kernel == "one_pass" or all(tiles.values()), kernel
        for tile in (tile for listed in tiles.values() for tile in listed):
            assert all(n > 0 and n & (n - 1) == 0 for n in astuple(tile)[:3]), tile
            # A product sums over 16 elements at least, and never over the keys that dkdv holds.
            assert tile.held >= (8 if kernel.endswith("dkdv") else 16), tile
            assert tile.streamed >= 16, tile


@pytest.mark.parametrize("architecture", _triton.ARCHITECTURES)
def test_steps_of_the_key_gradient_end_where_tiles_of_the_query_gradient_do(architecture):
    # Beyond its tiles the query gradient leaves no lse for the key gradient to read.
    table = ARCHITECTURES[architecture].tiles
    for form in ("", "rows_"):
        for key in KEYS:
            held = min(tile.held for tile in table[f"{form}dq"][key])
            assert all(held % tile.streamed == 0 for tile in table[f"{form}dkdv"][key]), key


@pytest.mark.parametrize("width", [1, 64, 65, 128, 129, 256])
def test_a_head_dimension_takes_the_tiles_of_the_next_larger_in_the_table(width):
    bucket = next(known for known in HEAD_DIMS if width <= known)
    q, known = (meta(1, 1, 1, n) for n in (width, bucket))
    assert tiles_for("forward", q, False) == tiles_for("forward", known, False)


def test_the_first_tile_that_occupies_the_device_is_taken_and_else_the_last(monkeypatch):
    force("split, parts of dq", monkeypatch)  # 64 multiprocessors
    large, small, q = Tile(128, 16, 8, 1), Tile(32, 16, 8, 1), torch.empty(1)
    taken = {
        programs: first_occupying(q, (large, small), lambda tile, n=programs: n).held
        for programs in (1, 47, 48, 1000)
    }
    assert taken == {1: 32, 47: 32, 48: 128, 1000: 128}


# --- cutting up keys ----------------------------------------------------------------


@given(
    length=st.integers(0, 5000),
    parts=st.floats(0.01, 300, allow_nan=False),
    tile=st.sampled_from([16, 32, 64, 128]),
)
@settings(max_examples=300, deadline=None)
def test_stretches_cover_every_key_once_and_none_is_empty(length, parts, tile):
    cut = Cut.of(length, parts, tile)
    assert cut.stretch > 0
    assert cut.stretch % tile == 0
    assert cut.parts >= 1
    assert cut.parts <= max(1, round(parts))
    assert (cut.parts - 1) * cut.stretch < max(1, length) <= max(1, cut.parts * cut.stretch)


# --- strides ------------------------------------------------------------------------


@given(
    sizes=st.tuples(*(st.integers(1, 4) for _ in range(3))),
    gaps=st.tuples(*(st.integers(0, 64) for _ in range(3))),
    width=st.integers(1, 256),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
@settings(max_examples=200, deadline=None)
def test_the_alignment_divides_every_row_and_16_bytes(sizes, gaps, width, dtype):
    x = torch.empty(1, dtype=dtype, device="meta").as_strided((*sizes, width), (*gaps, 1))
    shape = constants(x)
    offsets = [
        sum(i * gap for i, gap in zip((b, h, row), gaps, strict=True))
        for b in range(sizes[0])
        for h in range(sizes[1])
        for row in range(sizes[2])
    ]
    assert all(offset % shape["ALIGN"] == 0 for offset in offsets)
    assert 16 % (shape["ALIGN"] * dtype.itemsize) == 0
    assert shape["BLOCK_D"] >= max(16, width)
    assert shape["BLOCK_D"] & (shape["BLOCK_D"] - 1) == 0


@pytest.mark.parametrize("width", [64, 80, 128])
def test_ordinary_layouts_are_read_16_bytes_at_once(width):
    contiguous = meta(2, 7, 33, width)
    fused = meta(2, 33, 3, 7, width)[:, :, 1].transpose(1, 2)
    assert constants(contiguous, fused, contiguous[:1].expand(2, -1, -1, -1))["ALIGN"] == 8


@pytest.mark.parametrize("kernel", ["one pass", "split", "rows"])
@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
def test_an_output_gradient_is_copied_only_where_32_bits_cannot_reach_its_columns(kernel, far):
    q, length = meta(1, 2, 200, 32), 200
    # Columns outermost: 32 of them, as far apart as a whole canvas, or much further.
    step = 1 << 26 if far else 2 * length
    dout = q.as_strided(q.shape, (length * 2, length, 1, step))
    lse, count = meta(1, 2, length), 16 if kernel == "one pass" else length
    rows = torch.empty(1, count, dtype=torch.int64, device="meta")
    limits = (None, 0.1, None, None)
    with recording("sm_90") as recorded:
        if kernel == "rows":
            row_kernels.backward(dout, q, q, q, q, q, q, q, q, lse, rows, *limits)
        else:
            query_kernels.backward(dout, q, q, q, q, lse, rows, *limits, "queries", False)
    names = {"one pass": "bwd_one_pass_kernel"}
    (launched,) = (
        each for each in recorded if each.kernel.__name__ == names.get(kernel, "bwd_dq_kernel")
    )
    assert launched.args[0].stride(-1) == (1 if far else step)


# --- launches -----------------------------------------------------------------------


def launches(call, *arguments, **options):
    with recording("sm_90") as recorded:
        call(*arguments, **options)
    return [launch.kernel.__name__ for launch in recorded]


def test_few_kernels_are_launched():
    assert launches(forward, 1, 1024) == ["fwd_kernel"]
    assert launches(backward, 1, 1024, 32) == ["bwd_one_pass_kernel", "bwd_sum_parts_kernel"]
    assert launches(backward, 1, 64, 32) == ["bwd_one_pass_kernel"]
    assert launches(backward, 1, 1024, 300) == ["bwd_dq_kernel", "bwd_dkdv_kernel"]
    assert launches(backward, 1, 1024, 9, grad_rows="keys") == ["bwd_dq_kernel", "bwd_dkdv_kernel"]
    assert launches(mass, 1, 1024, 9) == ["mass_kernel"]
    rows = ["slot_map_kernel", "rows_fwd_kernel", "join_parts_kernel"]
    assert launches(replay, 1, 1024, 9) == [*rows, rows[0], "bwd_dq_kernel", "bwd_dkdv_kernel"]


@pytest.mark.parametrize("count", [1, 32, 300])
def test_the_shape_of_work_does_not_depend_on_the_batch(count):
    def grids(batch):
        q, k = canvas(batch, 1024), canvas(batch, 1024, 4)
        lse, rows = meta(batch, 8, 1024, dtype=torch.float32), index_set(batch, count)
        with recording("sm_90") as recorded:
            query_kernels.backward(
                q, q, k, k, q, lse, rows, None, 0.1, None, None, "queries", False
            )
        return [(x.kernel.__name__, x.grid[0], x.grid[2], dict(x.options)) for x in recorded]

    assert grids(2) == grids(64)


def test_every_shape_of_work_can_be_forced(monkeypatch):
    # Or the tests that force them would prove less than they say.
    seen, parts = {}, {}
    for name in SHAPES:
        with monkeypatch.context() as patch:
            force(name, patch)
            with recording(_triton.ARCHITECTURES[0]) as recorded:
                backward(1, 129, 7)
            seen[name] = tuple(launch.kernel.__name__ for launch in recorded)
            parts[name] = recorded[0].args[list(recorded[0].kernel.arg_names).index("parts")]
    assert seen["one pass"] == ("bwd_one_pass_kernel",)
    assert seen["one pass, parts of dq"] == ("bwd_one_pass_kernel", "bwd_sum_parts_kernel")
    assert seen["split"] == seen["split, parts of dq"] == ("bwd_dq_kernel", "bwd_dkdv_kernel")
    assert [parts[name] > 1 for name in SHAPES] == [False, True, False, True]
