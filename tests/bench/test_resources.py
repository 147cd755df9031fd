"""What binaries need, and when that is too much. The compiler itself is not run here."""

from __future__ import annotations

import json
import re

import pytest

from bench import resources
from bench.__main__ import main
from bench.binaries import Binary, compile_package, packages_with_kernels


def binary(architecture: str = "sm_90", **figures: object) -> Binary:
    facts = {"warps": 8, "registers": 64, "spilled": 0, "shared": 0, **figures}
    return Binary("op", "case", "_kernel", architecture, "BLOCK=1", **facts)


@pytest.mark.parametrize(
    ("figures", "warps"),
    [
        ({"registers": 16}, 64),
        ({"registers": 64}, 32),
        ({"registers": 65}, 24),
        ({"registers": 255}, 8),
        ({"registers": 16, "shared": 100 << 10}, 16),
        ({"registers": 16, "shared": 227 << 10}, 8),
        ({"registers": 16, "warps": 1}, 32),
        ({"registers": 16, "warps": 12}, 60),
        ({"architecture": "sm_80", "registers": 16, "shared": 100 << 10}, 8),
        ({"architecture": "sm_100", "registers": 16, "tensor_columns": 256}, 16),
        # 64 lanes per warp, 512 registers each; 4 warps of 128 take all of a SIMD unit.
        ({"architecture": "gfx942", "warps": 4, "registers": 128}, 16),
        ({"architecture": "gfx942", "warps": 4, "registers": 64, "shared": 32 << 10}, 8),
    ],
    ids=str,
)
def test_the_scarcest_resource_decides_how_many_warps_are_resident(figures, warps):
    assert binary(**figures).resident_warps == warps


def test_occupancy_is_a_share_of_what_the_hardware_holds():
    assert binary(registers=64).occupancy == 0.5
    assert binary("gfx942", warps=4, registers=128).occupancy == 0.5


@pytest.mark.parametrize(
    ("figures", "complaint"),
    [
        ({}, ""),
        ({"shared": 227 << 10}, ""),
        ({"spilled": 4}, "spills 4 bytes per lane"),
        ({"shared": 228 << 10}, "needs 233472 bytes of shared memory, more than 232448"),
        ({"architecture": "gfx942", "shared": (64 << 10) + 4}, "needs 65540 bytes .* than 65536"),
        ({"error": "CompilationError: no"}, "does not compile: CompilationError: no"),
    ],
    ids=str,
)
def test_what_should_not_be_shipped_is_named(figures, complaint):
    assert re.fullmatch(complaint, binary(**figures).complaint)


def test_the_vocabulary_kernels_are_listed():
    assert {"entropy", "head_entropy", "soft_embedding", "tis_scores", "token_sampling"} <= set(
        packages_with_kernels()
    )


def test_nothing_is_compiled_while_triton_interprets(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="under TRITON_INTERPRET=1: unset it"):
        compile_package("entropy", "sm_90")


def test_a_spill_is_printed_and_fails_the_command(monkeypatch, capsys, tmp_path):
    found = [binary(), binary("gfx942", spilled=8)]
    monkeypatch.setattr(resources, "compile_all", lambda *arguments: found)
    with pytest.raises(SystemExit) as stop:
        main(["resources", "--json", str(tmp_path / "figures.json")])
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert "_kernel (case, BLOCK=1) on gfx942 spills 8 bytes per lane" in " ".join(printed.split())
    assert "50%" in printed
    written = [Binary(**facts) for facts in json.loads((tmp_path / "figures.json").read_text())]
    assert written == found


def test_binaries_without_complaint_are_printed_and_pass(monkeypatch, capsys):
    monkeypatch.setattr(resources, "compile_all", lambda *arguments: [binary()])
    main(["resources", "--op", "entropy", "--architecture", "sm_90"])
    assert "_kernel" in capsys.readouterr().out
