"""Random draws depend on the seed, the sequence, the step and the purpose, and on nothing else."""

from __future__ import annotations

import itertools

import torch

from boe import Item
from boe.decoding.draws import Draws
from boe.decoding.rows import Row

CPU = torch.device("cpu")


def row(key: str, step: int) -> Row:
    made = Row(Item(torch.tensor([0])), 0, key, torch.tensor([False]), 1, [])
    made.item.account.steps = step
    return made


def numbers(key: str = "a", step: int = 3, seed: int = 0, purpose: str = "tokens") -> list[float]:
    (generator,) = Draws([row(key, step)], seed, purpose, CPU)
    return torch.rand(4, generator=generator, dtype=torch.float64).tolist()


def test_every_part_of_the_key_changes_the_draws() -> None:
    drawn = [
        numbers(),
        numbers(key="b"),
        numbers(step=4),
        numbers(seed=1),
        numbers(purpose="scores"),
    ]
    for a, b in itertools.combinations(drawn, 2):
        assert not set(a) & set(b)
    assert numbers() == drawn[0]


def test_other_rows_of_the_batch_change_nothing() -> None:
    generators = list(Draws([row("x", 0), row("a", 3), row("y", 9)], 0, "tokens", CPU))
    assert torch.rand(4, generator=generators[1], dtype=torch.float64).tolist() == numbers()


def test_a_step_goes_on_drawing_where_it_left_off() -> None:
    draws = Draws([row("a", 3)], 0, "tokens", CPU)
    ours = []
    for _ in range(2):
        (generator,) = draws
        ours += torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    assert ours == numbers()


def test_the_step_is_the_one_at_which_the_draws_were_made() -> None:
    moving = row("a", 3)
    draws = Draws([moving], 0, "tokens", CPU)
    moving.item.account.steps = 4
    (generator,) = draws
    assert torch.rand(4, generator=generator, dtype=torch.float64).tolist() == numbers()
