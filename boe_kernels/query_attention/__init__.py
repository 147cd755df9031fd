"""ActiveQueryAttention: attention forward for all queries, backward for the active ones."""

from boe_kernels.query_attention.api import (
    DeferredRows,
    active_query_attention,
    active_query_backward,
    active_query_forward,
)

__all__ = [
    "DeferredRows",
    "active_query_attention",
    "active_query_backward",
    "active_query_forward",
]
