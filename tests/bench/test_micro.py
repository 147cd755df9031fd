"""The CPU suite in pytest-benchmark runs, compares rivals and stores what can be published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from boe_kernels import registered_ops

ROOT = Path(__file__).parents[2]
QUICKLY = ("--toy", "--benchmark-max-time=0.001", "--benchmark-min-rounds=1")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("micro") / "micro.json"
    command = [sys.executable, "-m", "pytest", "-c", "bench/micro/pytest.ini", "bench/micro"]
    # A worker of a parallel test run would pass on that it is one, and nothing would be timed.
    alone = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    done = subprocess.run(
        [*command, *QUICKLY, f"--benchmark-json={path}"],
        cwd=ROOT,
        env=alone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return json.loads(path.read_text())


def test_every_rival_has_a_ratio_to_ours_from_the_same_run(stored):
    groups = {}
    for entry in stored["benchmarks"]:
        groups.setdefault(entry["group"], {})[entry["name"]] = entry
    for group, entries in groups.items():
        assert len(entries) > 1, group
        ours = entries["ours"]["stats"]["median"]
        for entry in entries.values():
            assert entry["extra_info"]["times_ours"] == entry["stats"]["median"] / ours
    ops = {entry["extra_info"]["op"] for entry in stored["benchmarks"]}
    assert ops == {name.partition("(")[0] for name in registered_ops()}


def test_nothing_is_stored_of_the_machine_but_hardware_and_versions(stored):
    assert set(stored["machine_info"]) == {"hardware", "torch", "triton", "python"}
    assert set(stored["commit_info"]) == {"id"}
    assert str(ROOT) not in json.dumps(stored)


def test_single_samples_are_not_stored(stored):
    assert not [entry for entry in stored["benchmarks"] if "data" in entry["stats"]]
