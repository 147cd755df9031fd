"""The check of index values as one kernel. Its assertions are tripped in tests/gpu."""

from __future__ import annotations

import re

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from uninterpreted import told_by_code

from boe_kernels import _arguments
from boe_kernels._arguments import require_indices
from boe_kernels._rows import check_rows
from boe_kernels._triton import recording
from boe_kernels._triton_index_check import check_indices, index_faults

pytestmark = pytest.mark.usefixtures("interpreted")

BLOCK = tl.constexpr(16)


@triton.jit
def _faults_kernel(
    indices_ptr, outside_ptr, repeated_ptr, stride, count, lowest, end, UNIQUE: tl.constexpr
):
    first = tl.program_id(0) * BLOCK
    outside, repeated = index_faults(indices_ptr, stride, first, count, lowest, end, UNIQUE, BLOCK)
    places = first + tl.arange(0, BLOCK)
    tl.store(outside_ptr + places, outside, mask=places < count)
    tl.store(repeated_ptr + places, repeated, mask=places < count)


def faults(indices: Tensor, lowest: int, end: int, unique: bool = True) -> tuple[list[int], ...]:
    """Numbers of the indices that are outside, and of those that are given again later."""
    found = torch.full((2, len(indices)), -7, dtype=torch.int32)
    grid = (-(-len(indices) // BLOCK.value),)
    _faults_kernel[grid](
        indices, *found, indices.stride(0), len(indices), lowest, end, UNIQUE=unique
    )
    assert set(found.flatten().tolist()) <= {0, 1}, "every index has a verdict"
    return tuple(which.nonzero().flatten().tolist() for which in found)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 33])
def test_distinct_indices_within_the_bounds_have_no_fault(count):
    assert faults(torch.randperm(count), 0, count) == ([], [])


def test_every_index_outside_the_bounds_is_found():
    indices = torch.tensor([0, -1, 5, -2, 4, 1 << 40, -(1 << 40), *range(20, 40)])
    outside, _ = faults(indices, -1, 5)
    assert outside == [2, 3, 5, 6, *range(7, 27)]
    assert faults(indices, 0, 5)[0] == [1, *outside]


@pytest.mark.parametrize("apart", [1, 15, 16, 17, 40])
def test_an_index_given_twice_is_found_however_far_apart(apart):
    indices = torch.arange(50)
    indices[3 + apart] = 3
    assert faults(indices, 0, 50) == ([], [3])
    assert faults(indices, 0, 50, unique=False) == ([], [])


def test_padding_may_repeat_anywhere():
    indices = torch.tensor([-1, 2, -1, -1, 0, *[-1] * 30])
    assert faults(indices, -1, 3) == ([], [])


def test_indices_may_lie_apart_in_memory():
    indices = torch.arange(60)[::3]
    assert faults(indices, 0, 57) == ([19], [])


@given(st.lists(st.integers(-3, 12), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_the_kernel_faults_what_the_check_on_the_cpu_refuses(values):
    indices = torch.tensor([values])
    try:
        check_rows("rows", indices, 1, 10, like=indices)
        refused = None
    except (IndexError, ValueError) as error:
        refused = type(error)
    outside, repeated = faults(indices[0], -1, 10)
    # The check on the CPU looks for repeated values only if all are within the bounds.
    expected = IndexError if outside else ValueError if repeated else None
    assert refused is expected


@pytest.mark.parametrize("unique", [True, False])
def test_a_check_is_one_launch_for_all_canvases(unique):
    with recording("sm_90") as launches:
        message = "rows must not name a row twice" if unique else None
        check_indices(torch.empty(3, 65, dtype=torch.int64), -1, 9, "out of range", message)
    assert [launch.grid for launch in launches] == [(2, 3)]


def test_on_a_gpu_the_check_is_the_kernel_with_messages_that_fit_every_canvas(monkeypatch):
    class OnGpu:
        device, dtype = torch.device("cuda"), torch.int64

        def numel(self) -> int:
            return 4

    calls = []
    monkeypatch.setattr(_arguments, "why_not_triton", lambda device, dtype: None)
    monkeypatch.setattr(
        "boe_kernels._triton_index_check.check_indices", lambda *given: calls.append(given[1:])
    )
    require_indices("rows", OnGpu(), "rows", ("L", 9), padded=True, once="name a row twice")
    require_indices("ids", OnGpu(), "ids", ("V", 7))
    assert calls == [
        (
            -1,
            9,
            "rows must hold rows in [0, L), or -1 for padding",
            "rows must not name a row twice",
        ),
        (0, 7, "ids must hold ids in [0, V)", None),
    ]


ASSEMBLY = """
import json
from bench.binaries import assembly
from boe_kernels._triton_index_check import aot_cases
call = next(aot_cases()).call
print(json.dumps([*assembly(call, "sm_90"), *assembly(call, "gfx942")]))
"""


def test_the_assertions_are_in_the_binaries():
    # Triton leaves them out silently unless it is told to debug.
    nvidia, amd = told_by_code(ASSEMBLY)
    assert "call.uni __assertfail" in " ".join(nvidia.split())
    assert "s_trap" in amd
    for texts in (characters(nvidia), amd):
        assert "rows must hold rows in [0, L)" in texts
        assert "rows must not name a row twice" in texts


def characters(ptx: str) -> str:
    """Those of its strings, which are lists of bytes."""
    codes = map(int, re.findall(r"\b\d{2,3}\b", ptx))
    return "".join(chr(code) for code in codes if 31 < code < 127)
