"""The CPU suite in pytest-benchmark: every op, in groups of rivals at one shape.

``make micro`` runs it in about a minute and stores ``bench/results/micro-cpu.json``: medians
and quartiles, and each rival's time over ours from the same run. It is for seeing quickly
whether a change made something slower; the figures in the docs are those of ``make bench``,
whose rivals take turns round by round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.report import shape_text
from bench.results import Config, Environment

OURS = "ours"
RATIO = "times_ours"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--toy", action="store_true", help="tiny shapes, to see that it works")


@pytest.fixture
def toy(request: pytest.FixtureRequest) -> bool:
    """Whether to use shapes that take no time."""
    return bool(request.config.getoption("--toy"))


Calls = Mapping[str, Callable[[], Any]]
Compete = Callable[[str, str, Config, Calls, str], None]


@pytest.fixture
def compete(benchmark: Any) -> Compete:
    """Time one of several calls, after seeing that its results are those of ours.

    Arguments: the op, the mode, the shape, all calls by provider, and which one to time.
    Results are tensors or tuples of tensors; calls that give fewer are compared in those.
    """

    def run(op: str, mode: str, shape: Config, calls: Calls, provider: str) -> None:
        _assert_equal(provider, calls[provider](), calls[OURS]())
        benchmark.group = f"{op} {mode}, {shape_text(shape)}"
        benchmark.name = provider
        benchmark.extra_info.update(
            op=op, mode=mode, provider=provider, threads=torch.get_num_threads(), **shape
        )
        benchmark(calls[provider])

    return run


def _assert_equal(provider: str, mine: Any, ours: Any) -> None:
    pairs = zip(_tensors(mine), _tensors(ours), strict=False)
    for number, (a, b) in enumerate(pairs):
        error = float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))
        assert error < 1e-4, f"{provider}: result {number} is off by {error:.1e}"


def _tensors(results: Any) -> list[Tensor]:
    given = [results] if isinstance(results, Tensor) else list(results)
    return [x.detach() for x in given]


# --- what is stored -----------------------------------------------------------------


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, str]:
    """Hardware and versions, in place of everything that could be found out."""
    here = Environment.of(torch.device("cpu"))
    return {
        "hardware": here.hardware,
        "torch": here.torch_version,
        "triton": here.triton_version,
        "python": here.python_version,
    }


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, str]:
    return {"id": Environment.of(torch.device("cpu")).commit}


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Ratios to ours within each group; single samples are left out."""
    stored = output_json["benchmarks"]
    ours = {entry["group"]: entry["stats"]["median"] for entry in stored if entry["name"] == OURS}
    for entry in stored:
        del entry["options"], entry["stats"]["data"]
        if entry["group"] in ours:
            entry["extra_info"][RATIO] = entry["stats"]["median"] / ours[entry["group"]]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """How many times longer than ours every rival took."""
    session = getattr(config, "_benchmarksession", None)
    timed = [b for b in getattr(session, "benchmarks", []) if b.stats.data]
    ours = {b.group: b.stats.median for b in timed if b.name == OURS}
    rivals = [b for b in timed if b.name != OURS and b.group in ours]
    if rivals:
        terminalreporter.write_sep("-", "time over ours, medians of this run")
    for b in rivals:
        ratio = b.stats.median / ours[b.group]
        terminalreporter.write_line(f"{ratio:6.2f}×  {b.name:12} {b.group}")
