"""The attention call that the package is known by."""

from boe_kernels import DeferredRows, active_query_attention, active_row_attention

__all__ = ["DeferredRows", "active_query_attention", "active_row_attention"]
