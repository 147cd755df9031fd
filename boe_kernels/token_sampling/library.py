"""Token draws from PyTorch's own kernels, a block of rows at a time."""

from __future__ import annotations

from torch import Tensor

from boe_kernels.entropy import library as entropy_library
from boe_kernels.entropy.reference import suppress
from boe_kernels.token_sampling.noise import gumbel_noise


def forward(
    logits: Tensor, seeds: Tensor, temperature: float, suppressed_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The five statistics and the drawn tokens, int64 (N,)."""
    stats = entropy_library.forward(logits, suppressed_ids)
    token = seeds.new_empty(seeds.shape)
    # The noise takes several 64-bit numbers per logit.
    step = max(1, entropy_library.rows_per_block(logits) // 16)
    for start in range(0, logits.shape[0], step):
        block = slice(start, min(start + step, logits.shape[0]))
        z = suppress(logits[block].double(), suppressed_ids)
        score = gumbel_noise(seeds[block], logits.shape[1]).add_(z, alpha=1.0 / temperature)
        token[block] = score.argmax(dim=-1)
    return *stats, token
