"""Kernels for gradient-guided decoding of masked diffusion models.

Attention and vocabulary operators with sparse or fused backward passes. Each has a
reference that defines it and faster paths that compute the same.
"""

from boe_kernels._attention_plan import AttentionPlan
from boe_kernels._dispatch import BACKENDS, Decision, decide, observe_paths, registered_ops
from boe_kernels._native import native_kernels
from boe_kernels._rows import pad_rows
from boe_kernels._vocabulary_plan import VocabularyPlan
from boe_kernels._warmup import WarmupReport, warmup
from boe_kernels.attention_mass import attention_mass
from boe_kernels.entropy import EntropyStats, entropy_stats
from boe_kernels.frozen_linear import frozen_linear
from boe_kernels.head_entropy import linear_entropy
from boe_kernels.query_attention import (
    DeferredRows,
    active_query_attention,
    active_query_backward,
    active_query_forward,
)
from boe_kernels.row_attention import active_row_attention
from boe_kernels.soft_embedding import inject_soft_embeddings
from boe_kernels.tis_scores import TisScores, tis_scores
from boe_kernels.token_sampling import TokenSample, sample_tokens

__all__ = [
    "BACKENDS",
    "AttentionPlan",
    "Decision",
    "DeferredRows",
    "EntropyStats",
    "TisScores",
    "TokenSample",
    "VocabularyPlan",
    "WarmupReport",
    "active_query_attention",
    "active_query_backward",
    "active_query_forward",
    "active_row_attention",
    "attention_mass",
    "decide",
    "entropy_stats",
    "frozen_linear",
    "inject_soft_embeddings",
    "linear_entropy",
    "native_kernels",
    "observe_paths",
    "pad_rows",
    "registered_ops",
    "sample_tokens",
    "tis_scores",
    "warmup",
]
