"""Random draws that depend on a sequence and step, and on nothing else in the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch

from boe.decoding.rows import Row


class Draws:
    """A generator per row for one purpose of one step, made when first asked for.

    Each depends on the seed, the row's key, its step and the purpose: draws of a step
    cannot shift those of a later one, or of another row. Most steps draw nothing.
    """

    def __init__(self, rows: Sequence[Row], seed: int, purpose: str, device: torch.device) -> None:
        self._rows, self._seed, self._purpose, self._device = rows, seed, purpose, device
        self._steps = [row.item.account.steps for row in rows]
        self._made: tuple[torch.Generator, ...] | None = None

    def __iter__(self) -> Iterator[torch.Generator]:
        if self._made is None:
            self._made = tuple(
                seeded(f"{self._seed}/{row.key}/{step}/{self._purpose}", self._device)
                for row, step in zip(self._rows, self._steps, strict=True)
            )
        return iter(self._made)


def seeded(key: str, device: torch.device) -> torch.Generator:
    """A generator that depends on ``key`` alone."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest) >> 1)
