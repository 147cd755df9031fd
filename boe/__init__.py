"""Backward-on-Entropy steering for masked diffusion language models."""
