"""The attention mass's Triton kernel, interpreted."""

from __future__ import annotations

import pytest
import torch
from attention_shapes import force
from test_attention_mass import RAGGED, Problem, blind_canvas

from boe_kernels import attention_mass

pytestmark = pytest.mark.usefixtures("interpreted", "poisoned_allocations", "small_tiles")


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    force("split", monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("length", [1, 63, 129], ids="L={}".format)
def test_the_mass_is_what_its_definition_says(length, dtype):
    Problem.of(torch.arange(0, length, 3), length=length, width=16, dtype=dtype).check("triton")


@pytest.mark.parametrize("width", [8, 40, 80, 160], ids="D={}".format)
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (3, 1)], ids=str)
def test_any_heads_and_head_dimension_are_right(heads, width):
    Problem.of(torch.arange(5), heads=heads, width=width).check("triton")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "restrictions",
    [
        {},
        {"mask": blind_canvas(40)},
        {"window": 5},
        {"block_size": 9},
        {"mask": blind_canvas(40), "window": 3, "block_size": 4},
        {"scale": -0.4},
    ],
    ids=["none", "padding", "window", "blocks", "all of them", "negative scale"],
)
def test_ragged_rows_are_right_whatever_hides_keys(restrictions, weighted):
    Problem.of(RAGGED, batch=3, heads=(4, 2), weighted=weighted, **restrictions).check("triton")


def test_rows_without_positions_are_right():
    case = Problem.of(torch.arange(7))
    expected = case.run("triton")
    actual = attention_mass(
        case.q_rows, case.k, case.lse_rows, scale=case.options["scale"], backend="triton"
    )
    assert torch.equal(actual, expected)


def test_no_rows_give_no_mass():
    case = Problem.of(torch.zeros(0, dtype=torch.int64))
    assert torch.equal(case.run("triton"), torch.zeros(2, 40))


def test_what_padding_holds_does_not_matter():
    case = Problem.of(RAGGED, batch=3, weighted=True)
    assert torch.equal(case.with_padding(torch.nan).run("triton"), case.run("triton"))


def test_strided_inputs_give_the_same_as_their_copies():
    case = Problem.of(RAGGED, batch=3, weighted=True)
    assert torch.equal(case.strided().run("triton"), case.run("triton"))


def test_repeated_runs_give_the_same_bits_and_so_does_a_canvas_alone():
    case = Problem.of(RAGGED, batch=3, heads=(4, 2), weighted=True, mask=blind_canvas(40))
    together = case.run("triton")
    assert torch.equal(case.run("triton"), together)
    for b in range(3):
        assert torch.equal(case.canvas(b).run("triton"), together[b : b + 1])
