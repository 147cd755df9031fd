"""Statistics of a linear head around the Triton kernels."""

from __future__ import annotations

import pytest
import test_head_entropy as every_path
import torch
from allocations import AllocationRecorder
from error_bounds import largest
from test_head_entropy import VOCABULARY, head, statistics_and_gradient

from boe_kernels import EntropyStats, linear_entropy
from boe_kernels._triton import recording
from boe_kernels.entropy.triton import parameters
from boe_kernels.entropy.triton.parameters import VocabularyLaunch

pytestmark = pytest.mark.usefixtures("poisoned_allocations", "interpreted")

DTYPES = (torch.float32, torch.float16)


@pytest.fixture(autouse=True, params=[1 << 30, 0], ids=["parts of rows", "whole rows"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics and gradient in launches of their own, or in one. A tile has 16 ids."""
    launch = VocabularyLaunch(warps=1, threads=1, whole_rows=request.param, gradient_loads=1)
    for architecture in parameters.LAUNCH:
        monkeypatch.setitem(parameters.LAUNCH, architecture, launch)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0], ids=["flat", "random", "peaked"])
def test_statistics_are_as_accurate_as_torch_distributions(scale, dtype):
    every_path.test_statistics_are_as_accurate_as_torch_distributions(
        torch.tensor([0, 28, 5]), True, scale, dtype, "triton"
    )


def test_without_bias_and_suppressed_ids_too():
    every_path.test_statistics_are_as_accurate_as_torch_distributions(
        None, False, 1.0, torch.float32, "triton"
    )


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_size_of_the_blocks_changes_nothing(rows):
    hidden, weight, bias = head(5)
    # With whole multiples of 1/8 the products are exact in whatever order they are summed.
    hidden, weight, bias = ((x * 8).round() / 8 for x in (hidden, weight, bias))
    options = {"suppressed_ids": torch.tensor([3]), "backend": "triton"}
    whole = statistics_and_gradient(hidden, weight, bias, **options)
    blocks = statistics_and_gradient(
        hidden, weight, bias, block_elements=rows * VOCABULARY, **options
    )
    for name, actual, expected in zip(EntropyStats._fields, blocks[0], whole[0], strict=True):
        assert torch.equal(actual, expected), name
    # The gradient's product sums what is not exact.
    scale = torch.finfo(torch.float32).eps * VOCABULARY * largest(weight)
    assert largest(blocks[1] - whole[1]) <= scale


@pytest.mark.parametrize("with_gradient", [False, True])
def test_no_more_than_one_block_of_logits_is_ever_held(with_gradient):
    hidden, weight = torch.randn(8, 2), torch.randn(100, 2)
    hidden.requires_grad_(with_gradient)
    # Without the kernels, for which the interpreter has memory of its own.
    with recording("sm_80"), AllocationRecorder(known=(hidden, weight)) as recorder:
        linear_entropy(hidden, weight, block_elements=250, backend="triton")
    large = [shape for _, shape in recorder.returned if torch.Size(shape).numel() >= 100]
    # One buffer of two rows, which every product is written to and its gradient after it.
    assert large
    assert set(large) <= {(2, 100)}
    buffers = [func for func, shape in recorder.returned if "empty" in func and shape == (2, 100)]
    assert len(buffers) == 1


def test_only_as_much_as_the_rows_need_is_held():
    hidden, weight = torch.randn(3, 2), torch.randn(100, 2)
    with recording("sm_80"), AllocationRecorder(known=(hidden, weight)) as recorder:
        linear_entropy(hidden, weight, backend="triton")
    assert recorder.largest()[0] == 300


def test_no_rows_give_empty_results():
    hidden, weight, bias = head(0)
    stats, gradient = statistics_and_gradient(hidden, weight, bias, backend="triton")
    assert all(value.shape == (0,) for value in stats)
    assert gradient.shape == hidden.shape


def test_a_row_that_holds_nan_spoils_no_other():
    hidden, weight, bias = head(3)
    expected, expected_gradient = statistics_and_gradient(hidden, weight, bias, backend="triton")
    hidden[1] = torch.nan
    stats, gradient = statistics_and_gradient(hidden, weight, bias, backend="triton")
    assert stats.entropy.isnan().tolist() == [False, True, False]
    assert gradient[1].isnan().all()
    assert torch.equal(stats.entropy[[0, 2]], expected.entropy[[0, 2]])
    assert torch.equal(gradient[[0, 2]], expected_gradient[[0, 2]])


def test_repeated_runs_give_the_same_bits():
    hidden, weight, bias = head(4)
    first, first_gradient = statistics_and_gradient(hidden, weight, bias, backend="triton")
    stats, gradient = statistics_and_gradient(hidden, weight, bias, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(stats, first, strict=True))
    assert torch.equal(gradient, first_gradient)
