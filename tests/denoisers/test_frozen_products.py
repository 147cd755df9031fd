"""Linear layers inside a replay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from boe.denoisers.frozen_products import FrozenProducts, frozen_products_for
from boe_kernels import observe_paths


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 5).requires_grad_(False)


def test_a_constant_layer_runs_as_a_frozen_linear_with_the_same_gradient(layer):
    x = torch.randn(2, 3, 6, requires_grad=True)
    expected = layer(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    with observe_paths() as seen, FrozenProducts():
        out = layer(x)
        (mine,) = torch.autograd.grad(out.square().sum(), x)
    assert [op for op, _ in seen] == ["frozen_linear", "frozen_linear"]
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(mine, gradient)


def test_outside_the_block_nothing_is_changed(layer):
    with FrozenProducts():
        pass
    with observe_paths() as seen:
        layer(torch.randn(1, 6))
    assert seen == []


def test_a_layer_in_training_is_left_alone(layer):
    layer.weight.requires_grad_()
    with observe_paths() as seen, FrozenProducts():
        layer(torch.randn(1, 6)).sum().backward()
    assert seen == []
    assert layer.weight.grad is not None


def test_autocast_is_left_alone(layer):
    with observe_paths() as seen, FrozenProducts(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(1, 6)).dtype == torch.bfloat16
    assert seen == []


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 8, 511), []), ((1, 8, 512), ["frozen_linear"]), ((64, 8, 64), ["frozen_linear"])],
)
def test_a_replay_too_small_to_gain_keeps_to_pytorch(layer, shape, expected):
    with observe_paths() as seen, frozen_products_for(torch.empty(shape)):
        layer(torch.randn(1, 6))
    assert [op for op, _ in seen] == expected
