"""Compact attention of active rows against a frozen canvas, for replay."""

from boe_kernels.row_attention.api import active_row_attention

__all__ = ["active_row_attention"]
