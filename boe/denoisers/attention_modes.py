"""What our attention does inside a transformers model during one forward.

The function :func:`boe_attention` is registered with transformers under
:data:`ATTENTION_NAME`. A forward passes a *mode* as the keyword ``boe_mode``, and every
attention layer hands its queries, keys and values to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from boe.denoisers.base import UnsupportedModel, mark_rows
from boe_kernels import (
    DeferredRows,
    active_query_attention,
    active_query_forward,
    active_row_attention,
    decide,
)

ATTENTION_NAME = "boe_active_query"


@dataclass
class LayerCall:
    """One attention layer's inputs and settings. q (B, Hq, L, D); k, v (B, Hkv, L, D).

    ``lse`` (B, Hq, L) is ln Σ exp(scale · q·k) of each row, where a recording has it.
    ``key_bias`` (B, L) is added to the scores; :class:`Plain` alone takes one.
    """

    q: Tensor | None
    k: Tensor
    v: Tensor
    key_padding_mask: Tensor | None
    scale: float
    window: int | None = None
    block_size: int | None = None
    lse: Tensor | None = None
    key_bias: Tensor | None = None

    def select(self, rows: Tensor, length: int | None = None) -> LayerCall:
        """Keys and values of the given batch rows (N,), of the first ``length`` positions."""
        padding = self.key_padding_mask
        return replace(
            self,
            q=None,
            lse=None,
            k=self.k[rows, :, :length],
            v=self.v[rows, :, :length],
            key_padding_mask=None if padding is None else padding[rows, :length],
        )


class AttentionMode(ABC):
    """Computes the attention of the layers of one forward, in the order they are called."""

    @abstractmethod
    def attend(self, call: LayerCall) -> Tensor:
        """(B, Hq, L, D) from the call, whose ``q`` is present."""


@dataclass
class Plain(AttentionMode):
    """Attention of all rows; gradients flow through ``active_idx``, by default every row."""

    active_idx: Tensor | DeferredRows | None = None

    def attend(self, call: LayerCall) -> Tensor:
        assert call.q is not None
        active = self.active_idx
        if active is None:
            active = torch.arange(call.q.shape[2], device=call.q.device)
        return active_query_attention(
            call.q,
            call.k,
            call.v,
            active,
            key_padding_mask=call.key_padding_mask,
            key_bias=call.key_bias,
            scale=call.scale,
            window=call.window,
            block_size=call.block_size,
        )


@dataclass
class Recording(AttentionMode):
    """Attention of all rows without gradients, keeping what a replay needs."""

    keep_queries: bool = False
    layers: list[LayerCall] = field(default_factory=list)

    def attend(self, call: LayerCall) -> Tensor:
        assert call.q is not None
        if not (self.keep_queries and _gives_lse(call.q)):
            self.layers.append(call if self.keep_queries else replace(call, q=None))
            return Plain().attend(call)
        out, lse = active_query_forward(
            call.q,
            call.k,
            call.v,
            key_padding_mask=call.key_padding_mask,
            scale=call.scale,
            window=call.window,
            block_size=call.block_size,
        )
        self.layers.append(replace(call, lse=lse))
        return out


@dataclass
class Replaying(AttentionMode):
    """Attention of the active rows against a recorded forward.

    Attributes:
        rows: int64 (B, A), padded with −1.
        local: cut the gradient through keys and values, which leaves what a row does to
            itself (its own query and residual stream).
    """

    layers: list[LayerCall]
    rows: Tensor
    local: bool = False
    _next: int = 0

    def attend(self, call: LayerCall) -> Tensor:
        assert call.q is not None
        recorded = self.layers[self._next]
        self._next += 1
        k_rows, v_rows = (call.k.detach(), call.v.detach()) if self.local else (call.k, call.v)
        return active_row_attention(
            call.q,
            k_rows,
            v_rows,
            recorded.k,
            recorded.v,
            self.rows,
            key_padding_mask=recorded.key_padding_mask,
            scale=recorded.scale,
            window=recorded.window,
            block_size=recorded.block_size,
        )


@dataclass
class StopGradient(AttentionMode):
    """Eq. 30 by the letter: dense attention with a dense backward, whose gradient is set to
    zero at inactive rows when it arrives. The yardstick of the sparse engines."""

    active: DeferredRows

    def attend(self, call: LayerCall) -> Tensor:
        assert call.q is not None
        out = Plain().attend(call)
        if out.requires_grad:
            out.register_hook(self._drop_inactive)
        return out

    def _drop_inactive(self, grad: Tensor) -> Tensor:
        return grad * mark_rows(self.active.rows, grad.shape[2])[:, None, :, None]


def _gives_lse(q: Tensor) -> bool:
    """Whether the forward of these queries gives its log-sum-exp: not PyTorch's on a GPU."""
    path = decide("active_query_attention", "auto", q.device, q.dtype, q.shape[-1]).path
    return path != "library" or q.device.type == "cpu"


def boe_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    boe_mode: AttentionMode | None = None,
    boe_active_idx: Tensor | None = None,
    boe_block_size: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """ActiveQueryAttention in transformers' attention interface.

    Outside this package, pass ``boe_active_idx`` to the model's forward to choose the
    active rows; without it every row is active. ``boe_block_size`` makes attention
    block-causal. A mask (B, L) tells padding; one (B, 1, 1, L) is bool, True at real keys,
    or floating, added to the scores.
    """
    if is_causal if is_causal is not None else getattr(module, "is_causal", False):
        raise UnsupportedModel(
            f"{ATTENTION_NAME} is bidirectional, but {type(module).__name__} is causal: set "
            "config.is_causal = False to run the model as a masked denoiser"
        )
    if dropout:
        raise ValueError(f"{ATTENTION_NAME} has no dropout, got {dropout}: call model.eval()")
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise UnsupportedModel(f"{ATTENTION_NAME} does not support {name}")
    padding, bias = _padding_and_bias(attention_mask)
    if bias is not None and boe_mode is not None:
        raise UnsupportedModel(
            f"{ATTENTION_NAME} takes no additive mask in a denoiser: {type(module).__name__} must "
            "hand over the padding mask (B, L) that it is given"
        )
    # Rotated in float32 by models that do so (LLaDA), and rounded only here.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # transformers passes 1 + the distance to which a layer sees.
    window = None if sliding_window is None else sliding_window - 1
    mode = Plain(boe_active_idx) if boe_mode is None else boe_mode
    call = LayerCall(query, key, value, padding, scale, window, boe_block_size, key_bias=bias)
    return mode.attend(call).transpose(1, 2), None


def _padding_and_bias(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The padding mask and the bias, (B, L) both, that a mask of a model stands for."""
    if mask is None:
        return None, None
    if mask.dim() == 2:
        return mask.bool(), None
    if mask.dim() != 4 or mask.shape[1:3] != (1, 1):
        raise ValueError(
            f"{ATTENTION_NAME} takes a padding mask (B, L), or a mask of keys (B, 1, 1, L), "
            f"got {tuple(mask.shape)}"
        )
    of_keys = mask[:, 0, 0]
    return (None, of_keys) if mask.is_floating_point() else (of_keys.bool(), None)


def _padding_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The 2-D padding mask as it came: the form in which :func:`boe_attention` takes it.

    Without a mask function of its own, transformers would silently drop the mask.
    """
    return attention_mask


def register_attention() -> None:
    """Make :data:`ATTENTION_NAME` known to transformers; again is harmless."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, boe_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, _padding_mask)
