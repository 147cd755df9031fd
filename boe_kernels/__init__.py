"""Kernels for gradient-guided decoding of masked diffusion models.

Attention and vocabulary operators with sparse or fused backward passes. Each has a
reference that defines it and faster paths that compute the same.
"""

from boe_kernels._dispatch import BACKENDS, Decision, decide, observe_paths, registered_ops
from boe_kernels._rows import pad_rows
from boe_kernels.entropy import EntropyStats, entropy_stats
from boe_kernels.head_entropy import linear_entropy
from boe_kernels.query_attention import DeferredRows, active_query_attention
from boe_kernels.row_attention import active_row_attention
from boe_kernels.soft_embedding import inject_soft_embeddings

__all__ = [
    "BACKENDS",
    "Decision",
    "DeferredRows",
    "EntropyStats",
    "active_query_attention",
    "active_row_attention",
    "decide",
    "entropy_stats",
    "inject_soft_embeddings",
    "linear_entropy",
    "observe_paths",
    "pad_rows",
    "registered_ops",
]
