"""Which keys the queries of a canvas see, and with what bias: the key mask.

The attention ops take a ``key_padding_mask`` and a ``key_bias``. Behind their public functions
both are one *key mask*: ``None``; bool (B, Lk), True at keys that are seen; or floating
(B, Lk), what is added to the scaled scores, −∞ at keys that are not seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._arguments import require_same_device, require_shape, require_tensor


def checked_key_mask(
    key_padding_mask: Tensor | None,
    key_bias: Tensor | None,
    query: tuple[str, Tensor],
    k: Tensor,
) -> Tensor | None:
    """The key mask of a padding mask that has been checked and a bias, which is checked here.

    Args:
        query: the queries (B, Hq, A, D), with their name. k: the keys (B, Hkv, Lk, D).

    Raises:
        TypeError, ValueError: the bias is no tensor, or has another dtype, device or shape
            than it must have.
    """
    if key_bias is None:
        return key_padding_mask
    name, q = query
    require_tensor("key_bias", key_bias)
    if key_bias.dtype not in (torch.float32, q.dtype):
        hint = ": a mask is a key_padding_mask" if key_bias.dtype == torch.bool else ""
        raise TypeError(
            f"key_bias must be float32 or have the dtype of {name} ({q.dtype}), "
            f"got {key_bias.dtype}{hint}"
        )
    require_same_device("key_bias", key_bias, name, q)
    if key_bias.dim() > 2:
        raise ValueError(
            "key_bias must have shape (B, Lk): biases that differ from query to query or head "
            f"to head are not supported, got {tuple(key_bias.shape)}"
        )
    require_shape("key_bias", key_bias, (q.shape[0], k.shape[2]), "(B, Lk)")
    return as_key_mask(key_padding_mask, key_bias)


def require_constant_bias(op: str, key_bias: Tensor) -> None:
    """The bias must not require a gradient while one is being recorded: the op gives none."""
    if key_bias.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"key_bias must not require a gradient: {op} gives it none; detach it, or use "
            "backend='reference', which differentiates it"
        )


def as_key_mask(key_padding_mask: Tensor | None, key_bias: Tensor | None) -> Tensor | None:
    """The key mask of a padding mask and a bias, either of which may be absent."""
    if key_bias is None or key_padding_mask is None:
        return key_padding_mask if key_bias is None else key_bias
    return key_bias.masked_fill(~key_padding_mask, -torch.inf)


def seen_keys(mask: Tensor | None) -> Tensor | None:
    """Which keys a key mask lets be seen: bool (B, 1, 1, Lk), or ``None`` for all."""
    if mask is None:
        return None
    # NaN is seen, and spreads.
    seen = mask if mask.dtype == torch.bool else mask != -torch.inf
    return seen[:, None, None, :]


def bias_of(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What a floating key mask adds to scores, (B, 1, 1, Lk) in ``dtype`` or its own if that is
    wider; ``None`` for others."""
    if mask is None or mask.dtype == torch.bool:
        return None
    return mask[:, None, None, :].to(torch.promote_types(mask.dtype, dtype))
