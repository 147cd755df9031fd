"""Gumbel-max sampling of tokens from logits, together with their statistics."""

from boe_kernels.token_sampling.api import TokenSample, sample_tokens

__all__ = ["TokenSample", "sample_tokens"]
