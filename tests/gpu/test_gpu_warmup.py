"""A warm-up makes what CUDA graphs need, in a process that has called nothing before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from boe_kernels import AttentionPlan, warmup

pytestmark = pytest.mark.device_only

ROOT = Path(__file__).parents[2]
PLAN = AttentionPlan(4, 32, 40, kv_heads=2, ops=("attention_mass",))


def test_every_op_can_be_captured_right_after_a_warm_up():
    paths = (os.fspath(ROOT), os.fspath(ROOT / "tests" / "gpu"))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("captured_after_warmup.py"))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all captured" in done.stdout


def test_a_warm_up_takes_the_kernels_on_a_gpu_and_says_so(device):
    report = warmup(PLAN)
    assert [str(decision) for decision in report.decisions] == ["attention_mass: triton"]
    assert any(binary.startswith("mass_kernel") for binary in report.binaries)
    assert warmup(PLAN).compiled == 0


def test_a_warm_up_inside_a_capture_is_refused(device):
    warmup(PLAN)
    refused = ""
    graph = torch.cuda.CUDAGraph()
    x = torch.zeros(1, device=device)
    with torch.cuda.graph(graph):
        x.add_(1)
        try:
            warmup(PLAN)
        except RuntimeError as error:
            refused = str(error)
    assert "before a CUDA graph is captured" in refused
