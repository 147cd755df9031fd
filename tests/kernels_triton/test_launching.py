"""How kernels are launched, recorded, and given the parameters of their architecture."""

from __future__ import annotations

import logging

import pytest
import torch
import triton
import triton.language as tl

from boe_kernels._triton import (
    ARCHITECTURES,
    for_device,
    known_architecture,
    launch,
    recording,
)
from boe_kernels.entropy.triton.parameters import LAUNCH as ENTROPY
from boe_kernels.soft_embedding.triton import LAUNCH as SOFT_EMBEDDING
from boe_kernels.tis_scores.triton import LAUNCH as TIS_SCORES

pytestmark = pytest.mark.usefixtures("interpreted")

CPU = torch.device("cpu")
TABLE = {name: name.upper() for name in ARCHITECTURES}


@triton.jit
def _fill_kernel(x_ptr, value, BLOCK: tl.constexpr):
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + columns, tl.zeros((BLOCK,), tl.float32) + value)


def test_a_launch_runs_the_kernel_on_its_grid():
    x = torch.zeros(6)
    launch(_fill_kernel, (2,), x, 3.0, BLOCK=2, num_warps=1)
    assert x.tolist() == [3.0] * 4 + [0.0] * 2


def test_a_recorded_launch_is_described_and_does_not_run():
    x = torch.zeros(4)
    with recording("sm_100") as launches:
        launch(_fill_kernel, (2,), x, 3.0, BLOCK=2, num_warps=1)
    assert not x.any()
    (recorded,) = launches
    assert (recorded.kernel, recorded.grid) == (_fill_kernel, (2,))
    assert recorded.args[0] is x
    assert recorded.args[1:] == (3.0,)
    assert recorded.options == {"BLOCK": 2, "num_warps": 1}
    launch(_fill_kernel, (2,), x, 3.0, BLOCK=2, num_warps=1)
    assert x.all(), "recording ends with its block"


def test_a_grid_without_programs_is_not_launched():
    x = torch.zeros(0)
    launch(_fill_kernel, (0,), x, 3.0, BLOCK=2, num_warps=1)
    with recording("sm_80") as launches:
        launch(_fill_kernel, (3, 0), x, 3.0, BLOCK=2, num_warps=1)
    assert launches == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recording_takes_the_parameters_of_the_architecture(architecture):
    with recording(architecture):
        assert for_device(TABLE, torch.device("meta")) == architecture.upper()


def test_the_interpreter_takes_the_first_architectures_parameters():
    assert for_device(TABLE, CPU) == "SM_80"


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("sm_86", "sm_80"),
        ("sm_89", "sm_80"),
        ("sm_103", "sm_100"),
        ("sm_120", "sm_80"),
        ("gfx90a", "gfx942"),
        ("gfx950", "gfx942"),
        ("gfx1100", "gfx942"),
    ],
)
def test_an_architecture_without_parameters_gets_the_nearest_and_says_so(name, chosen, caplog):
    with caplog.at_level(logging.WARNING):
        assert known_architecture(name) == chosen
    assert caplog.messages == [f"no launch parameters for {name}; using those of {chosen}"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_known_architecture_is_taken_silently(name, caplog):
    assert known_architecture(name) == name
    assert not caplog.messages


@pytest.mark.parametrize(
    "table", [ENTROPY, SOFT_EMBEDDING, TIS_SCORES], ids=["entropy", "soft_embedding", "tis_scores"]
)
def test_every_architecture_has_launch_parameters(table):
    assert tuple(table) == ARCHITECTURES
