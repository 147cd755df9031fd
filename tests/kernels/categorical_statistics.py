"""Entropy and companions by torch.distributions: the yardstick of the vocabulary tests."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical


def statistics_by_torch(
    leaf: Tensor, logits: Tensor, suppressed_ids: Tensor | None, grad: Tensor
) -> dict[str, Tensor]:
    """Statistics of ``logits`` (..., V) and the gradient of their entropy at ``leaf``.

    Computed in the logits' precision, but at least in float32. Impossible ids sit so far
    below the others that exp gives exactly 0, because Categorical has no gradient at −inf.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if suppressed_ids is not None:
        z = z.index_fill(-1, suppressed_ids, -torch.inf)
    far_below = z.detach().amax(dim=-1, keepdim=True) - 1000.0
    distribution = Categorical(logits=torch.where(z == -torch.inf, far_below, z))
    entropy = distribution.entropy()
    (gradient,) = torch.autograd.grad(entropy, leaf, grad.to(entropy.dtype))
    z = z.detach()
    nothing = torch.zeros_like(z[..., :1])
    top = torch.cat((z.softmax(dim=-1), nothing), dim=-1).topk(2).values
    return {
        "entropy": entropy.detach(),
        "logsumexp": z.logsumexp(dim=-1),
        "top1": top[..., 0],
        "top2": top[..., 1],
        "gradient": gradient,
    }
