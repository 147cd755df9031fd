"""What policies remember, and how rows carry it in and out of the batch."""

from __future__ import annotations

import torch

from boe import Canvas
from boe.samplers.memory import Memory


def canvas(*lengths: int) -> Canvas:
    return Canvas.of([torch.ones(n).long() for n in lengths])


def test_what_was_never_kept_is_the_fill() -> None:
    assert Memory().on_canvas("x", canvas(3, 2), -1.0).tolist() == [[-1.0] * 3] * 2
    assert Memory().get("x") is None


def test_selected_rows_keep_their_memory_and_are_cut_to_the_canvas() -> None:
    memory = Memory()
    memory.put("x", torch.arange(6.0).double().view(2, 3), -1.0)
    part = memory.select([1])
    assert part.on_canvas("x", canvas(2), -1.0).tolist() == [[3.0, 4.0]]
    assert memory.on_canvas("x", canvas(3, 3), -1.0).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_rows_of_any_widths_join_padded_with_the_fill() -> None:
    wide, narrow = Memory(), Memory()
    wide.put("x", torch.ones(1, 3, 2), 7.0)
    narrow.put("x", torch.zeros(1, 1, 2), 7.0)
    joined = Memory.join([wide.row(0), {}, narrow.row(0)])
    assert joined.get("x").tolist() == [
        [[1.0, 1.0]] * 3,
        [[7.0, 7.0]] * 3,
        [[0.0, 0.0], [7.0, 7.0], [7.0, 7.0]],
    ]


def test_integers_stay_integers() -> None:
    memory = Memory()
    memory.put("x", torch.tensor([[4, 5]]), -1)
    assert Memory.join([memory.row(0), {}]).get("x").tolist() == [[4, 5], [-1, -1]]
