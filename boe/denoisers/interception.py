"""Intercepting what a model calls, for models whose code we cannot change.

A :class:`Interception` is a ``TorchFunctionMode``: while it is entered it sees every torch
function that the model calls, however the name was bound, and nothing is patched. It
replaces four kinds of call: the lookup of the input embeddings, scaled-dot-product
attention, the head, and linear layers, whose backward then runs on the active rows only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from boe.canvas import Canvas
from boe.denoisers.attention_modes import AttentionMode, LayerCall, Plain
from boe.denoisers.base import UnsupportedModel, take_rows
from boe_kernels import DeferredRows


class Interception(TorchFunctionMode):
    """One forward of a model on a canvas, with embeddings and attention of our choice.

    Args:
        canvas: what the model is called with; attention masks must agree with it.
        embeds: (B, L, D), taken in place of the lookup in ``table``.
        mode: computes the attention.
        table: the input embeddings' weight.
        head: the head's weight, or ``None`` to leave the head alone.
        head_rows: int64 (B, R), the rows for which the head is computed.
        row_sparse: let the backward of linear layers skip the inactive rows, where the
            mode defers them. Exact wherever rows meet in attention only.

    Attributes:
        lookups, attentions: how many calls were replaced.
        head_input: (picked, in all rows), once the head was called.
    """

    def __init__(
        self,
        canvas: Canvas,
        embeds: Tensor,
        mode: AttentionMode,
        table: Tensor,
        head: Tensor | None,
        head_rows: Tensor,
        row_sparse: bool,
    ) -> None:
        super().__init__()
        self.canvas, self.embeds, self.mode = canvas, embeds, mode
        self.table, self.head, self.head_rows = table, head, head_rows
        deferred = mode.active_idx if isinstance(mode, Plain) else None
        self.sparse_rows = deferred if row_sparse and isinstance(deferred, DeferredRows) else None
        self.lookups = self.attentions = 0
        self.head_input: tuple[Tensor, Tensor] | None = None
        self._checked_masks: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.embedding and _second(args, kwargs) is self.table:
            return self._look_up(args[0] if args else kwargs["input"])
        if func is torch.Tensor.__getitem__ and args[0] is self.table:
            return self._look_up(args[1])
        if func is F.linear:
            return self._linear(*args, **kwargs)
        return func(*args, **kwargs)

    def _look_up(self, ids: Any) -> Tensor:
        if not isinstance(ids, Tensor) or ids.shape != self.canvas.ids.shape:
            raise UnsupportedModel(
                "the model looks up its embedding table with something other than the canvas"
            )
        self.lookups += 1
        return self.embeds

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight is self.head:
            picked = take_rows(input, self.head_rows)
            self.head_input = (picked, input)
            return F.linear(picked, weight, bias)
        if (
            self.sparse_rows is not None
            and input.requires_grad
            and input.dtype == weight.dtype
            and not torch.is_autocast_enabled(input.device.type)
            and input.dim() == 3
            and input.shape[:2] == self.canvas.ids.shape
        ):
            return _RowSparseLinear.apply(input, weight, bias, self.sparse_rows)
        return F.linear(input, weight, bias)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        batch, length = self.canvas.ids.shape
        if is_causal:
            raise UnsupportedModel("the model calls attention with is_causal=True: not a denoiser")
        if dropout_p:
            raise UnsupportedModel(f"the model calls attention with dropout_p={dropout_p}")
        shapes = [tuple(x.shape) for x in (query, key, value)]
        if any(len(s) != 4 or (s[0], s[2]) != (batch, length) for s in shapes):
            raise UnsupportedModel(
                "the model attends over something other than the canvas: expected "
                f"({batch}, heads, {length}, width), got {', '.join(map(str, shapes))}"
            )
        if query.shape[1] != key.shape[1] and not enable_gqa:
            raise UnsupportedModel("the model groups heads without enable_gqa=True")
        self._check_mask(attn_mask)
        self.attentions += 1
        padding = self.canvas.valid if self.canvas.padded else None
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return self.mode.attend(LayerCall(query, key, value, padding, scale))

    def _check_mask(self, mask: Tensor | None) -> None:
        """Refuse every mask but the canvas's padding. Waits for the device, once a mask."""
        if mask is None:
            if self.canvas.padded:
                raise UnsupportedModel(
                    "the model calls attention without a mask for a padded batch, so padding "
                    "would be attended to: decode sequences of one length together"
                )
            return
        if any(mask is known for known in self._checked_masks):
            return
        if mask.requires_grad:
            raise UnsupportedModel("the model adds an attention bias that has a gradient")
        visible = mask
        if mask.dtype != torch.bool:
            visible = mask == 0
            if not bool((visible | (mask <= torch.finfo(mask.dtype).min / 4)).all()):
                raise UnsupportedModel("the model adds an attention bias, not just a mask")
        valid = self.canvas.valid
        while visible.dim() < 4:
            visible = visible.unsqueeze(0)
        wrong = (visible != valid[:, None, None, :]) & valid[:, None, :, None]
        if bool(wrong.any()):
            raise UnsupportedModel(
                "the model masks attention by more than the padding (causal, windowed or blocks)"
            )
        self._checked_masks.append(mask)


class _RowSparseLinear(torch.autograd.Function):
    """x Wᵀ + b of all rows; the backward reaches the bound rows only (method section 3.2)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, deferred: DeferredRows
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.deferred = deferred
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        rows = ctx.deferred.rows
        batch, length, _ = grad.shape
        out = grad.new_zeros(batch, length + 1, weight.shape[1])
        # Padding goes to a spare row, cut off below.
        index = torch.where(rows < 0, length, rows)
        which = torch.arange(batch, device=rows.device).unsqueeze(1)
        out[which, index] = take_rows(grad, rows) @ weight
        return out[:, :length], None, None, None


def _second(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[1] if len(args) > 1 else kwargs.get("weight")
