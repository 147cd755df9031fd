"""Vocabulary statistics straight from hidden states, without holding the logits."""

from boe_kernels.head_entropy.api import linear_entropy

__all__ = ["linear_entropy"]
