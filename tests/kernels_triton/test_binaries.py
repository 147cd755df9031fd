"""Every Triton kernel, compiled ahead of time; all configurations: python -m bench resources."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pytest
from packaging.version import Version
from uninterpreted import told_by

from bench.binaries import Binary, packages_with_kernels
from bench.binary_record import read_record
from bench.units import TARGETS, UNITS
from boe_kernels._triton import ARCHITECTURES

OLD_TRITON = Version(version("triton")) < Version("3.9")

# In 99 KB of shared memory, by the parameters of sm_80: one case that asks for most of it each.
SERVED = {
    "sm_86": ("forward, bfloat16, 128, everything seen",),
    "sm_89": ("one pass, bfloat16, 128, everything seen",),
    "sm_120": ("forward, bfloat16, 128, everything seen", "split, bfloat16, 128, window"),
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """Compiled in another process, because this one imports Triton to interpret."""
    return told_by("compiled_binaries.py", json.dumps(SERVED))


@pytest.fixture(scope="module")
def binaries(compiled: dict[str, Any]) -> list[Binary]:
    """One of every kernel for every architecture."""
    return [Binary(**facts) for facts in compiled["sampled"]]


def test_what_tuning_compiles_a_launch_need_not_compile_again(compiled):
    assert compiled["found after tuning"] == [True]


def test_every_architecture_with_launch_parameters_is_compiled_for():
    assert tuple(TARGETS) == ARCHITECTURES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("package", packages_with_kernels())
def test_no_kernel_spills_or_wants_more_shared_memory_than_there_is(
    package, architecture, binaries
):
    if (package, architecture) == ("row_attention", "gfx942") and OLD_TRITON:
        pytest.skip("on AMD it needs Triton 3.9: docs/kernels.md")
    chosen = [b for b in binaries if (b.op, b.architecture) == (package, architecture)]
    assert chosen, "no binary was made"
    complaints = [f"{b.kernel} ({b.case}, {b.options}) {b.complaint}" for b in chosen]
    assert not [text for text, b in zip(complaints, chosen, strict=True) if b.complaint]


def test_the_recorded_binaries_are_those_of_the_committed_launch_parameters(compiled):
    record = read_record()
    if version("triton") not in record:
        pytest.skip(f"recorded for {', '.join(record)} only")
    recorded = {(b.architecture, b.kernel, b.options) for b in record[version("triton")]}
    # Of a version not every architecture needs to be recorded.
    architectures = {architecture for architecture, *_ in recorded}
    wanted = {tuple(each) for each in compiled["wanted"] if each[0] in architectures}
    assert recorded == wanted, "run python -m bench resources --record"


def test_products_of_the_one_pass_on_sm_90_do_not_wait_for_each_other(compiled):
    # They did as long as dQ was the last product of a step.
    # With 32 keys per step the products of dK and dV are too small for its instructions.
    (of_64_keys,) = (
        said for options, said in compiled["remarks"].items() if "'BLOCK_N': 64" in options
    )
    assert not [line for line in of_64_keys if "serialized" in line]


def test_the_fused_soft_write_reads_ahead_in_loads_of_16_bytes_on_sm_90(compiled):
    # It did not read logits so before the compiler knew that steps begin at multiples of 16.
    product, join = compiled["assembly"]
    assert "cp.async.cg.shared.global" in product
    assert "ld.global.b16" not in product
    assert "wgmma.mma_async" in product
    assert "ld.global" in join


# --- parts without launch parameters of their own -----------------------------------


def test_parts_served_by_others_run_by_parameters_that_fit_their_shared_memory():
    assert {name: UNITS[name].parameters for name in SERVED} == dict.fromkeys(SERVED, "sm_80")
    assert {name: UNITS[name].parameters for name in TARGETS} == {n: n for n in ARCHITECTURES}


@pytest.mark.parametrize("name", SERVED)
def test_kernels_fit_parts_that_run_by_the_parameters_of_sm_80(name, compiled):
    made = [Binary(**facts) for facts in compiled["served"][name]]
    assert {binary.case for binary in made} == set(SERVED[name])
    assert {binary.architecture for binary in made} == {name}
    # Spills there cost time on a part whose tiles are another's; what does not fit does not run.
    assert not [f"{b.kernel} {b.complaint}" for b in made if b.complaint and not b.spilled]
    limit = UNITS[name].shared_per_group
    assert limit // 2 < max(binary.shared for binary in made) <= limit
