"""The frozen linear layer from the quickest product at hand."""

from boe_kernels._products import linear as forward

__all__ = ["forward"]
