"""The definition of a token draw."""

from __future__ import annotations

from torch import Tensor

from boe_kernels._autocast import in_given_dtypes
from boe_kernels.entropy.reference import reference as statistics
from boe_kernels.entropy.reference import suppress
from boe_kernels.token_sampling.noise import gumbel_noise


@in_given_dtypes
def reference(
    logits: Tensor, seeds: Tensor, temperature: float, suppressed_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The five statistics of softmax(z), and a draw from softmax(z/τ) by the Gumbel maximum.

    Args:
        logits: (N, V); −inf marks impossible ids.
        seeds: int64 (N,).
    """
    z = suppress(logits.detach().double(), suppressed_ids)
    score = z / temperature + gumbel_noise(seeds, z.shape[-1])
    return *statistics(logits.detach(), suppressed_ids), score.argmax(dim=-1)
