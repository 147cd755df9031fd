"""Training, validation and test problems that never overlap.

A problem belongs to a split by a hash of what identifies it (its *key*), not by the
seed of the stream that it was drawn in: no seed can bring a test problem into training.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import torch
from torch import Tensor

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_BUCKETS = 16
_FIRST_TRAINING_BUCKET = 2  # bucket 0 is test, bucket 1 validation


def check_split(split: str) -> None:
    """Raise ``ValueError`` unless ``split`` is one of :data:`SPLITS`."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def seed_of(*parts: object) -> int:
    """A 63-bit seed from parts such as a task's name, a split and a user's seed."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def in_split(keys: Tensor, split: Split, salt: str) -> Tensor:
    """bool (N,): which problems belong to ``split``. One key in 16 is test, one validation.

    Args:
        keys: int64 (N,), equal exactly for problems that count as the same.
        salt: the task's name, so that equal keys of two tasks are unrelated.
    """
    bucket = _mixed(keys ^ seed_of("boe/split", salt)) & (_BUCKETS - 1)
    if split == "train":
        return bucket >= _FIRST_TRAINING_BUCKET
    return bucket == (0 if split == "test" else 1)


def _mixed(x: Tensor) -> Tensor:
    """A hash of int64 numbers: SplitMix64's finaliser (Steele et al. 2014), products wrapping."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ _logical_shift(x, shift)) * factor
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Tensor, count: int) -> Tensor:
    return (x >> count) & torch.tensor((1 << (64 - count)) - 1)
