"""What binaries need, and when that is too much. The compiler itself is not run here."""

from __future__ import annotations

import json
import re

import pytest

from bench import resources
from bench.__main__ import main
from bench.binaries import Binary, Wanted, packages_with_kernels, wanted_binaries
from bench.resources import Kept, gather


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
        # What sm_80 could have, but sm_89, which takes the same tiles, has not.
        ({"architecture": "sm_80", "shared": 100 << 10}, "needs 102400 bytes .* than 101376"),
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
        wanted_binaries("entropy", "sm_90")


# --- what is kept -------------------------------------------------------------------


def wanted(key: str, architecture: str = "sm_90") -> Wanted:
    return Wanted("op", "case", "_kernel", architecture, "BLOCK=1", 0, key)


@pytest.fixture
def two_binaries(monkeypatch, tmp_path):
    """An op whose binaries are "a" and "b"; a list of the keys that were compiled; the file."""
    compiled = []
    monkeypatch.setattr(
        resources, "wanted_binaries", lambda op, architecture, sample: [wanted("a"), wanted("b")]
    )

    def compile_all(missing, jobs):
        for each in missing:
            compiled.append(each.key)
            yield each, binary(registers=ord(each.key))

    monkeypatch.setattr(resources, "compile_all", compile_all)
    return compiled, tmp_path / "kept.jsonl"


def test_what_was_compiled_before_is_not_compiled_again(two_binaries):
    compiled, path = two_binaries
    first = gather(["op"], ["sm_90"], False, 1, Kept(path))
    assert compiled == ["a", "b"]
    assert gather(["op"], ["sm_90"], False, 1, Kept(path)) == first
    assert compiled == ["a", "b"]
    gather(["op"], ["sm_90"], False, 1, Kept(path, fresh=True))
    assert compiled == ["a", "b"] * 2


def test_a_binary_that_two_ops_share_is_compiled_once(two_binaries):
    compiled, path = two_binaries
    found, missing = gather(["op", "other"], ["sm_90"], False, 1, Kept(path))
    assert (compiled, len(found), missing) == (["a", "b"], 2, 0)


def test_an_interrupted_run_keeps_what_it_has(two_binaries, monkeypatch):
    compiled, path = two_binaries
    whole = resources.compile_all

    def interrupted(missing, jobs):
        yield next(whole(missing, jobs))
        raise KeyboardInterrupt

    monkeypatch.setattr(resources, "compile_all", interrupted)
    found, missing = gather(["op"], ["sm_90"], False, 1, Kept(path))
    assert ([b.registers for b in found], missing) == ([97], 1)
    monkeypatch.setattr(resources, "compile_all", whole)
    found, missing = gather(["op"], ["sm_90"], False, 1, Kept(path))
    assert ([b.registers for b in found], missing) == ([97, 98], 0)
    assert compiled == ["a", "b"]


def test_half_a_line_of_a_killed_run_is_dropped(two_binaries):
    compiled, path = two_binaries
    gather(["op"], ["sm_90"], False, 1, Kept(path))
    path.write_text(path.read_text()[:-9])
    for _ in range(2):
        found, _ = gather(["op"], ["sm_90"], False, 1, Kept(path))
        assert [b.registers for b in found] == [97, 98]
    assert compiled == ["a", "b", "b"]


def test_what_does_not_compile_is_tried_again(tmp_path):
    kept = Kept(tmp_path / "kept.jsonl")
    kept.add(wanted("a"), binary(error="no"))
    assert kept.get(wanted("a")) is None


def test_an_interrupted_command_says_how_many_are_missing(two_binaries, monkeypatch, capsys):
    def interrupted(missing, jobs):
        raise KeyboardInterrupt
        yield

    _, path = two_binaries
    monkeypatch.setattr(resources, "compile_all", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["resources", "--op", "entropy", "--architecture", "sm_90", "--kept", str(path)])
    assert stop.value.code == 130
    assert "2 binaries were not compiled" in capsys.readouterr().out


# --- the command --------------------------------------------------------------------


def test_a_spill_is_printed_and_fails_the_command(monkeypatch, capsys, tmp_path):
    found = [binary(), binary("gfx942", spilled=8)]
    monkeypatch.setattr(resources, "gather", lambda *arguments: (found, 0))
    files = ["--json", str(tmp_path / "figures.json"), "--kept", str(tmp_path / "kept.jsonl")]
    with pytest.raises(SystemExit) as stop:
        main(["resources", *files])
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert "_kernel (case, BLOCK=1) on gfx942 spills 8 bytes per lane" in " ".join(printed.split())
    assert "50%" in printed
    written = [Binary(**facts) for facts in json.loads((tmp_path / "figures.json").read_text())]
    assert written == found


def test_binaries_without_complaint_are_printed_and_pass(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(resources, "gather", lambda *arguments: ([binary()], 0))
    kept = str(tmp_path / "kept.jsonl")
    main(["resources", "--op", "entropy", "--architecture", "sm_90", "--kept", kept])
    assert "_kernel" in capsys.readouterr().out
