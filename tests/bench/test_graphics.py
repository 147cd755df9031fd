"""What is told of a GPU, with whatever of the system's tools there is."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
import torch

from bench import graphics
from bench.results import Environment, Measurement, Quantiles, read_rows, save

ANSWERS = {"driver_version": "550.54.15", "power.limit": "700.00", "mig.mode.current": "[N/A]"}


@pytest.fixture
def gpu(monkeypatch):
    properties = SimpleNamespace(
        major=9,
        minor=0,
        total_memory=80 << 30,
        multi_processor_count=132,
        L2_cache_size=50 << 20,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=227 << 10,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")


def answer(monkeypatch, answers):
    def run(command, **options):
        if command[0] != "nvidia-smi":
            raise OSError(f"{command[0]} is not asked about a GPU")
        (query,) = (part for part in command if part.startswith("--query-gpu="))
        field = query.partition("=")[2]
        if field not in answers:
            raise subprocess.CalledProcessError(2, command)
        return SimpleNamespace(stdout=f"{answers[field]}\n")

    monkeypatch.setattr(subprocess, "run", run)


def test_the_facts_are_those_that_the_system_tells(gpu, monkeypatch):
    answer(monkeypatch, ANSWERS)
    facts = graphics.gpu_facts(torch.device("cuda"))
    assert facts["driver"] == "550.54.15"
    assert facts["power limit (W)"] == "700.00"
    assert facts["multiprocessors"] == "132"
    assert facts["shared memory per block (KiB)"] == "227"
    # Not applicable, and not known to this nvidia-smi.
    assert facts["MIG"] == facts["highest SM clock (MHz)"] == "unknown"


def test_without_nvidia_smi_nothing_fails(gpu, monkeypatch):
    def missing(*args, **options):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", missing)
    facts = graphics.gpu_facts(torch.device("cuda"))
    assert facts["capability"] == "9.0"
    assert facts["power limit (W)"] == "unknown"


def test_a_row_of_a_gpu_names_its_driver_and_cuda(gpu, monkeypatch, tmp_path):
    answer(monkeypatch, ANSWERS)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    once = Quantiles.of([1.0])
    row = Measurement("toy", "ours", "forward", "float32", {"L": 8}, "time_ms", once)
    save(tmp_path / "gpu.csv", [row], Environment.of(torch.device("cuda")))
    (stored,) = read_rows(tmp_path / "gpu.csv")
    assert (stored["hardware"], stored["cuda"], stored["driver"]) == (
        "NVIDIA H100",
        "12.8",
        "550.54.15",
    )


def test_a_row_of_a_cpu_names_neither():
    environment = Environment.of(torch.device("cpu"))
    assert (environment.cuda_version, environment.driver_version) == ("", "")
