"""Soft writes: the expected embedding of a masked position, blended into a canvas."""

from boe_kernels.soft_embedding.api import inject_soft_embeddings

__all__ = ["inject_soft_embeddings"]
