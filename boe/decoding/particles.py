"""What runs with particles share: their states, barriers, draws and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boe.decoding.decoder import Decoder
from boe.decoding.draws import seeded
from boe.decoding.records import Account, Item, StepRecord
from boe.decoding.rows import Block, Row
from boe.samplers.memory import RowMemory
from boe.samplers.particles import Particles
from boe.samplers.step import Ready


@dataclass(frozen=True)
class State:
    """All that a particle's future depends on, at one moment; and its past."""

    ids: Tensor
    blocks: list[Block]
    index: int
    left: int
    ready: Ready | None
    memory: RowMemory
    log_likelihood: float
    end: int | None
    trajectory: list[StepRecord] | None

    @classmethod
    def of(cls, row: Row) -> State:
        past = row.item.trajectory
        return cls(
            row.item.ids.clone(),
            row.blocks,
            row.index,
            row.left,
            row.ready,
            row.memory,
            row.log_likelihood,
            row.item.end,
            None if past is None else list(past),
        )

    def restore(self, row: Row) -> None:
        """Make ``row`` go on from here; its draws and account stay its own."""
        row.blocks, row.index, row.left = self.blocks, self.index, self.left
        row.ready, row.memory = self.ready, self.memory
        row.log_likelihood = self.log_likelihood
        row.item.ids, row.item.end = self.ids.clone(), self.end
        row.item.trajectory = None if self.trajectory is None else list(self.trajectory)


def copies_of(row: Row, particles: Particles, name: str) -> list[Row]:
    """A row's particles, each with draws of its own."""
    copies = []
    for k in range(particles.particles):
        copy = Row(
            Item(row.item.ids.clone(), trajectory=None if row.item.trajectory is None else []),
            row.number,
            f"{row.key}/{name}{k}",
            row.given,
            row.masks,
            row.blocks,
            reports=k == 0,
        )
        copies.append(copy)
    return copies


def to_barrier(decoder: Decoder, rows: Sequence[Row], every: int | None) -> None:
    """Run the rows for ``every`` steps, or to the ends of their blocks."""
    began = {id(row): row.item.account.steps for row in rows}

    def pause(row: Row) -> bool:
        if every is None:
            return row.index == 0
        return row.item.account.steps - began[id(row)] >= every

    decoder.run(rows, pause)


def draw(log_weights: Sequence[float], count: int, key: str) -> list[int]:
    """``count`` ancestors, drawn in proportion to the weights."""
    weights = torch.tensor(log_weights, dtype=torch.float64).softmax(dim=0)
    generator = seeded(key, torch.device("cpu"))
    return torch.multinomial(weights, count, replacement=True, generator=generator).tolist()


def answer_of(row: Row, account: Account) -> Item:
    return Item(row.item.ids, account, row.item.trajectory, row.item.end)


def total_of(rows: Sequence[Row]) -> Account:
    total = Account()
    for row in rows:
        total.add(row.item.account)
    total.steps = max(row.item.account.steps for row in rows)
    return total
