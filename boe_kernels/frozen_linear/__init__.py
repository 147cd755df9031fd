"""A linear layer with constant weights."""

from boe_kernels.frozen_linear.api import frozen_linear

__all__ = ["frozen_linear"]
