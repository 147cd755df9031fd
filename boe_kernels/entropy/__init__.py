"""Entropy and companions of categorical distributions given by logits."""

from boe_kernels.entropy.api import EntropyStats, entropy_stats

__all__ = ["EntropyStats", "entropy_stats"]
