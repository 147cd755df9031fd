"""How kernels are launched, recorded, and given the parameters of their architecture."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest
import torch
import triton
import triton.language as tl

from bench.binaries import aot_cases, packages_with_kernels
from boe_kernels._triton import (
    ARCHITECTURES,
    architecture_of,
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


def test_a_recorded_launch_runs_if_asked_to_and_is_told_to_a_recording_around_it():
    x = torch.zeros(4)
    with recording("sm_80") as around, recording("sm_90", run=True) as launches:
        launch(_fill_kernel, (2,), x, 3.0, BLOCK=2, num_warps=1)
    assert x.tolist() == [3.0] * 4
    assert around == launches
    assert len(launches) == 1


def test_the_signature_of_a_launch_tells_binaries_apart():
    def signature(x: torch.Tensor, value: float, **options: int) -> object:
        with recording("sm_80") as launches:
            launch(_fill_kernel, (1,), x, value, **options)
        return launches[0].signature

    x = torch.zeros(4)
    plain = signature(x, 3, BLOCK=2)
    assert signature(torch.zeros(9), 5, BLOCK=2) == plain
    others = [(x, 1, 2), (x, 16, 2), (x, 3.0, 2), (x, 3, 4), (x.half(), 3, 2), (x, 2**31, 2)]
    for tensor, value, block in others:
        assert signature(tensor, value, BLOCK=block) != plain


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
    ("name", "kilobytes", "chosen"),
    [
        ("sm_80", 163, "sm_80"),
        ("sm_86", 99, "sm_80"),
        ("sm_89", 99, "sm_80"),
        ("sm_90", 227, "sm_90"),
        ("sm_103", 227, "sm_100"),
        ("sm_120", 99, "sm_80"),
        ("sm_121", 99, "sm_80"),
        ("gfx90a", 64, "gfx942"),
        ("gfx950", 160, "gfx942"),
        ("gfx1100", 64, "gfx942"),
        # The name alone says nothing of what the part has, or may use.
        ("sm_90", 200, "sm_80"),
        ("sm_100", 99, "sm_80"),
        ("sm_104", 100, "sm_80"),
    ],
)
def test_parameters_are_chosen_by_generation_and_shared_memory(name, kilobytes, chosen):
    assert known_architecture(name, kilobytes << 10) == chosen


@pytest.mark.parametrize(
    ("name", "kilobytes", "least"), [("sm_80", 98, 99), ("sm_75", 64, 99), ("gfx942", 32, 64)]
)
def test_a_part_with_too_little_shared_memory_is_refused(name, kilobytes, least):
    with pytest.raises(RuntimeError, match=f"need {least} KB .* {name} has {kilobytes}: use"):
        known_architecture(name, kilobytes << 10)


@dataclass
class _Properties:
    """Of a device, as PyTorch tells them."""

    major: int
    minor: int
    shared_memory_per_block_optin: int
    shared_memory_per_block: int = 48 << 10


@pytest.mark.parametrize(
    ("properties", "chosen", "said"),
    [
        (_Properties(9, 0, 227 << 10), "sm_90", []),
        (
            _Properties(12, 0, 99 << 10),
            "sm_80",
            ["no launch parameters for sm_120; using those of sm_80"],
        ),
    ],
)
def test_the_device_is_asked_for_its_shared_memory(properties, chosen, said, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    architecture_of.cache_clear()
    with caplog.at_level(logging.WARNING):
        found = [architecture_of(torch.device("cuda", 0)) for _ in range(2)]
    architecture_of.cache_clear()
    assert found == [chosen, chosen]
    assert caplog.messages == said


def test_no_kernel_asks_amd_for_more_than_16_warps():
    # Of 64 lanes; a thread block has 1024 at most.
    warps = set()
    for package in packages_with_kernels():
        with recording("gfx942") as launches:
            for case in aot_cases(package):
                case.call()
        warps |= {launch.options["num_warps"] for launch in launches}
    assert max(warps) <= 16


@pytest.mark.parametrize(
    "table", [ENTROPY, SOFT_EMBEDDING, TIS_SCORES], ids=["entropy", "soft_embedding", "tis_scores"]
)
def test_every_architecture_has_launch_parameters(table):
    assert tuple(table) == ARCHITECTURES
