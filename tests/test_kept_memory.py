"""Freed memory that is kept from one training step to the next."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from boe.kept_memory import kept_memory
from boe.training import TrainConfig, fit

BLOCKS, BYTES = 12, 16 * 2**20
PAGES = BLOCKS * BYTES // 4096
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of <malloc.h>

VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)


@pytest.fixture(autouse=True)
def nothing_chosen_by_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def pages_taken() -> int:
    """Pages that the system has handed out to this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def take_and_free() -> int:
    """Pages that the system hands out for blocks as large as a step's activations."""
    before = pages_taken()
    blocks = [torch.zeros(BYTES // 4) for _ in range(BLOCKS)]
    taken = pages_taken() - before
    del blocks
    return taken


@glibc
def test_memory_freed_within_is_not_taken_from_the_system_again() -> None:
    with kept_memory():
        take_and_free()
        taken = sum(take_and_free() for _ in range(4))
    assert taken < PAGES, "once more at the most, for holes between what others have taken"


@glibc
def test_the_steps_of_a_training_keep_their_memory(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    taken: list[int] = []

    def next_loss(generator: torch.Generator) -> Tensor:
        taken.append(take_and_free())
        return model(torch.ones(1, 1)).sum()

    fit(model, next_loss, TrainConfig(steps=5, precision="fp32"), tmp_path)
    assert sum(taken[1:]) < PAGES, "as above"


@glibc
def test_what_was_kept_goes_back_to_the_system_at_the_end() -> None:
    def resident() -> int:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * 4096

    def interrupted() -> None:
        with kept_memory():
            take_and_free()
            within.append(resident())
            raise KeyboardInterrupt

    within: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert within[0] - resident() > BLOCKS * BYTES // 2


class Library:
    """A C library that takes thresholds up to a limit, as glibc does before 2.35."""

    def __init__(self, limit: int) -> None:
        self.limit, self.settings = limit, dict[int, int]()

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == MMAP_THRESHOLD and value > self.limit:
            return 0
        self.settings[parameter] = value
        return 1

    def malloc_trim(self, pad: int) -> int:
        return 1


@pytest.mark.parametrize(("limit", "taken"), [(2**25, 2**25), (2**62, 2**30)])
def test_the_largest_threshold_that_the_library_takes_is_set(
    limit: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(limit)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    with kept_memory():
        assert library.settings == {MMAP_THRESHOLD: taken, TRIM_THRESHOLD: 2**31 - 1}
    assert library.settings == {MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str | None) -> ctypes.CDLL:
        raise AssertionError("no library may be loaded")

    monkeypatch.setattr(ctypes, "CDLL", refuse)


@pytest.mark.usefixtures("no_library")
def test_where_the_c_library_is_another_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with kept_memory():
        pass


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_user_chose_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv(name, "1048576")
    with kept_memory():
        pass
