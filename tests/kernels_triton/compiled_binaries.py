"""Run as a program, without the interpreter: everything that ``test_binaries.py`` has compiled.

``python compiled_binaries.py SERVED``: a JSON object of cases of ``query_attention`` by the parts
that run them by another's launch parameters. Prints a JSON object; its start is most of the work
of some tests, which therefore share one.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench import resources
from bench.binaries import (
    Binary,
    Wanted,
    _target,
    aot_cases,
    assembly,
    packages_with_kernels,
    performance_remarks,
    wanted_binaries,
)
from bench.tiles import KERNELS, Subject, call, fits, only_tile, roles
from bench.units import TARGETS
from boe_kernels._attention_launch import Tile
from boe_kernels._triton import AotCase, recording


def chosen_binaries(package: str, architecture: str, sample: bool) -> list[Wanted | Binary]:
    """One binary of every kernel of the op, of another case for every architecture."""
    by_kernel: dict[str, dict[str, Wanted | Binary]] = defaultdict(dict)
    for each in wanted_binaries(package, architecture, sample):
        # A launcher that fails is a complaint of its own.
        failed = isinstance(each, Binary)
        by_kernel[f"{each.case} failed" if failed else each.kernel].setdefault(each.case, each)
    turn = tuple(TARGETS).index(architecture)
    return [list(cases.values())[turn % len(cases)] for cases in by_kernel.values()]


def sampled() -> list[dict[str, Any]]:
    """What ``python -m bench resources --sample`` tells, of the chosen binaries alone."""
    resources.wanted_binaries = chosen_binaries
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "binaries.json"
        files = ["--json", str(figures), "--kept", str(Path(folder) / "kept.jsonl")]
        # Complaints end the command with status 1; the tests look for them in what it wrote.
        with contextlib.suppress(SystemExit):
            resources.main(["--sample", "--jobs", "1", *files])
        return json.loads(figures.read_text())


def wanted() -> list[tuple[str, str, str]]:
    """Every binary of the committed launch parameters, by architecture, kernel and options."""
    return [
        (each.architecture, each.kernel, each.options)
        for package in packages_with_kernels()
        for architecture in TARGETS
        for each in wanted_binaries(package, architecture)
        if isinstance(each, Wanted)
    ]


def served(name: str, cases: list[str]) -> list[dict[str, Any]]:
    """Binaries of these cases for a part that runs them by another's parameters."""
    listed = wanted_binaries("query_attention", name, sample=True)
    return [asdict(each.compile()) for each in listed if each.case in cases]


def found_after_tuning() -> list[bool]:
    """Of each binary that a call in a tuned tile launches: whether Triton's cache holds it."""
    from triton import knobs

    subject, tile = Subject("one_pass", 16, 64, False), Tile(64, 64, 4, 2)
    role = roles(subject)[0]
    hits: list[bool] = []
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir = folder
        if not fits("sm_90", subject, role, tile):
            raise RuntimeError("the tile was chosen because it fits")
        knobs.compilation.listener = lambda **facts: hits.append(facts["cache_hit"])
        with only_tile("sm_90", subject, tile), _target("sm_90", kept=True):
            # As a launch compiles.
            knobs.compilation.always_compile = False
            knobs.nvidia.dump_ptxas_log = False
            with recording("sm_90") as launches:
                call(subject, role.shapes[0], torch.device("meta"))()
            for launch in launches:
                if launch.kernel.__name__ == KERNELS[subject.kernel]:
                    launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)
    return hits


def case_of(package: str, name: str) -> AotCase:
    (case,) = (each for each in aot_cases(package) if each.name == name)
    return case


def main(parts: dict[str, list[str]]) -> dict[str, Any]:
    one_pass = case_of("query_attention", "one pass, bfloat16, 128, everything seen")
    fused = case_of("soft_embedding", "fused, logits, bfloat16")
    return {
        "sampled": sampled(),
        "wanted": wanted(),
        "served": {name: served(name, cases) for name, cases in parts.items()},
        "remarks": performance_remarks(one_pass.call, "sm_90", "bwd_one_pass_kernel"),
        "assembly": assembly(fused.call, "sm_90"),
        "found after tuning": found_after_tuning(),
    }


if __name__ == "__main__":
    # What the command shows goes beside the result.
    with contextlib.redirect_stdout(sys.stderr):
        found = main(json.loads(sys.argv[1]))
    print(json.dumps(found))
