"""Graphed timing: how many sets of inputs, what is kept, what happens to what fails."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import launches
from bench.gpu.launches import Contestant, FatalDeviceError, number_of_sets, time_launches
from bench.timing import Effort, interleave

EFFORT = Effort(seconds=0.0, least_rounds=3, most_rounds=3)
MIB = 1 << 20


class StandInGraph:
    """Replays what was called while it was being captured."""

    capturing = None
    replays = 0

    def __init__(self):
        self.calls = []

    def replay(self):
        StandInGraph.replays += 1
        for call in self.calls:
            call()

    def reset(self):
        self.calls = []


@contextmanager
def capture(graph, stream):
    StandInGraph.capturing = graph
    try:
        yield
    finally:
        StandInGraph.capturing = None


@pytest.fixture
def device(monkeypatch):
    """A device that says it is a GPU, and computes on the CPU."""
    stream = SimpleNamespace(synchronize=lambda: None, wait_stream=lambda other: None)
    properties = SimpleNamespace(L2_cache_size=50 * MIB)
    for name, stand_in in {
        "Stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda device: stream,
        "CUDAGraph": StandInGraph,
        "graph": capture,
        "empty_cache": lambda: None,
        "synchronize": lambda device: None,
        "get_device_properties": lambda device: properties,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    def on_the_cpu(calls, device, effort, settings=None, launching=True):
        return interleave(
            calls, torch.device("cpu"), effort, settings=settings, launching=launching
        )

    monkeypatch.setattr(launches, "interleave", on_the_cpu)
    StandInGraph.replays = 0
    return SimpleNamespace(type="cuda")


def contestant(seen, fails_in_graphs=False):
    def bind(inputs):
        def call():
            graph = StandInGraph.capturing
            if graph is not None:
                if fails_in_graphs:
                    raise RuntimeError("operation not permitted when stream is capturing")
                graph.calls.append(lambda: seen.append(inputs))
            return inputs

        return call

    return Contestant(bind, nullcontext)


def drawn():
    count = 0

    def draw():
        nonlocal count
        count += 1
        return count

    return draw


def test_a_replay_goes_through_all_sets_and_its_time_is_shared_among_them(device):
    seen = []
    found = time_launches(
        {"ours": contestant(seen)}, drawn(), device, EFFORT, touched=40 * MIB, held=MIB
    )
    sets = number_of_sets(40 * MIB, MIB, device)
    assert sets == 5
    # The first set drawn is the eager one.
    assert seen == [*range(2, 2 + sets)] * StandInGraph.replays
    assert len(found.timings["graphed"]["ours"].samples) == 3
    assert found.failures == {"eager": {}, "graphed": {}}


def test_so_many_sets_that_the_cache_is_overwritten_before_one_comes_round(device):
    for touched in (MIB, 7 * MIB, 40 * MIB):
        others = number_of_sets(touched, MIB, device) - 1
        assert others * touched >= 150 * MIB or others == 47
    assert number_of_sets(1 << 40, MIB, device) == 2
    # Memory is limited, too.
    assert number_of_sets(MIB, 3 << 30, device) == 8


def test_what_cannot_be_captured_is_timed_eagerly_and_gives_its_reason(device):
    seen = []
    found = time_launches(
        {"ours": contestant(seen), "rival": contestant([], fails_in_graphs=True)},
        drawn(),
        device,
        EFFORT,
        touched=MIB,
        held=MIB,
    )
    assert set(found.timings["eager"]) == {"ours", "rival"}
    assert set(found.timings["graphed"]) == {"ours"}
    why = "RuntimeError: operation not permitted when stream is capturing"
    assert found.failures["graphed"] == {"rival": why}


def test_what_cannot_run_at_all_is_in_neither(device):
    def bind(inputs):
        raise NotImplementedError("No available kernel.\nAborting execution.")

    found = time_launches(
        {"ours": contestant([]), "rival": Contestant(bind, nullcontext)},
        drawn(),
        device,
        EFFORT,
        touched=MIB,
        held=MIB,
    )
    why = {"rival": "NotImplementedError: No available kernel."}
    assert found.failures == {"eager": why, "graphed": why}
    assert set(found.timings["graphed"]) == {"ours"}


def test_a_failure_that_takes_the_device_away_is_not_survived(device, monkeypatch):
    def lost(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(FatalDeviceError, match="something"):
        launches.reason(RuntimeError("something"), device)


def test_settings_are_entered_around_every_call_and_capture(device):
    entered = []

    @contextmanager
    def setting():
        entered.append("in")
        yield
        entered.append("out")

    def bind(inputs):
        assert entered[-1] == "in"

        def call():
            assert entered[-1] == "in"
            if StandInGraph.capturing is not None:
                StandInGraph.capturing.calls.append(lambda: None)

        return call

    found = time_launches(
        {"rival": Contestant(bind, setting)}, drawn(), device, EFFORT, touched=MIB, held=MIB
    )
    assert set(found.timings["graphed"]) == {"rival"}
    assert entered.count("in") == entered.count("out")
