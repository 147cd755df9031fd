"""Splits: disjoint, of the promised sizes, independent of seeds."""

from __future__ import annotations

import pytest
import torch

from boe.tasks.splits import SPLITS, check_split, in_split


def test_every_key_is_in_exactly_one_split() -> None:
    keys = torch.cat((torch.arange(10_000), torch.tensor([2**63 - 1, -(2**63), -1])))
    members = torch.stack([in_split(keys, split, "task") for split in SPLITS])
    assert bool((members.sum(dim=0) == 1).all())


def test_one_key_in_sixteen_is_test_and_one_validation() -> None:
    keys = torch.arange(160_000)
    for split, share in (("test", 1 / 16), ("validation", 1 / 16), ("train", 14 / 16)):
        assert float(in_split(keys, split, "task").double().mean()) == pytest.approx(
            share, abs=5e-3
        )


def test_splits_of_two_tasks_are_unrelated() -> None:
    keys = torch.arange(160_000)
    both = in_split(keys, "test", "one") & in_split(keys, "test", "two")
    assert float(both.double().mean()) == pytest.approx(1 / 256, abs=1e-3)


def test_membership_never_changes() -> None:
    """Shipped weights were trained on this assignment: changing it would leak test problems."""
    keys = torch.arange(64)
    assert in_split(keys, "test", "countdown").nonzero().flatten().tolist() == [5, 22, 61]


def test_an_unknown_split_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        check_split("dev")
