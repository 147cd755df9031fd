"""Denoisers from models that we know nothing about: remote code, or written by hand.

Attention is intercepted where the model calls ``F.scaled_dot_product_attention``
(:mod:`boe.denoisers.interception`). That gives late binding and the dense reference; a
replay would need the model to be run on some of its rows, which such a model cannot be
asked to do. What the model does is proven on a small canvas when the denoiser is built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from boe.canvas import Canvas
from boe.denoisers.attention_denoiser import (
    AttentionDenoiser,
    HeadOutput,
    check_ids,
    check_shift,
)
from boe.denoisers.attention_modes import AttentionMode, Plain
from boe.denoisers.base import (
    BridgeRule,
    DenoiserFacts,
    GradientRequest,
    Prediction,
    UnsupportedModel,
    take_rows,
)
from boe.denoisers.interception import Interception
from boe.denoisers.probing import agree
from boe_kernels import DeferredRows

Call = Callable[[nn.Module, Tensor, Tensor | None], Any]
"""Runs the model on ids (B, L) and a padding mask bool (B, L), or ``None`` without padding."""

_LENGTH = 6
_SAMPLED = (1, 4)
_ACTIVE = (0, 1, 3)


def call_with_ids(model: nn.Module, ids: Tensor, valid: Tensor | None) -> Any:
    """``model(ids)``; with padding, ``model(ids, attention_mask=valid)``."""
    return model(ids) if valid is None else model(ids, attention_mask=valid)


class InterceptedDenoiser(AttentionDenoiser):
    """Any module that calls ``F.scaled_dot_product_attention``, as a denoiser.

    The model is put into evaluation mode and its parameters are frozen. Engines "late"
    and "dense" work, "replay" is refused.

    Args:
        model: its forward gives logits (B, L, V): a tensor, a tuple that begins with it,
            or something with ``logits``.
        mask_id: id of the mask token.
        suppressed_ids: ids never to be written, besides the mask.
        logits_shift: −1 if row j − 1 of the logits predicts position j.
        table: the weight (V, D) of the input embeddings; by default that of
            ``model.get_input_embeddings()``.
        head: the weight (V, D) of the last linear layer; by default that of
            ``model.get_output_embeddings()``. Without one, logits are computed for every
            row.
        call: how to call the model, if :func:`call_with_ids` is not right.
        max_length: the longest canvas.

    Attributes:
        row_sparse_linear: linear layers skip inactive rows in the backward too.

    Raises:
        UnsupportedModel: a causal, dropped-out, biased or otherwise masked attention; rows
            that meet outside the intercepted attention; embeddings that are not a lookup.
    """

    replay_refusal = "nothing is known about running its code on some of its rows"

    def __init__(
        self,
        model: nn.Module,
        mask_id: int,
        *,
        suppressed_ids: tuple[int, ...] = (),
        logits_shift: int = 0,
        table: Tensor | None = None,
        head: Tensor | None = None,
        call: Call = call_with_ids,
        max_length: int | None = None,
    ) -> None:
        self.name = type(model).__name__
        self.model = model.eval().requires_grad_(False)
        self.call = call
        table = _weight_of(model, "get_input_embeddings") if table is None else table
        if table is None:
            raise UnsupportedModel(f"{self.name} does not name its input embeddings; give table")
        self._table = table
        self._head = _weight_of(model, "get_output_embeddings") if head is None else head
        self.row_sparse_linear = True
        check_shift(logits_shift)
        vocabulary = table.shape[0]
        self.facts = DenoiserFacts(
            mask_id=mask_id,
            vocab_size=vocabulary,
            suppressed_ids=check_ids(vocabulary, mask_id, suppressed_ids),
            logits_shift=logits_shift,
            max_length=max_length,
        )
        self._prove()

    @property
    def device(self) -> torch.device:
        return self._table.device

    @property
    def embedding_table(self) -> Tensor:
        return self._table

    def embed(self, ids: Tensor) -> Tensor:
        return self._table[ids]

    def bridge_scores(
        self, prediction: Prediction, request: GradientRequest, rule: BridgeRule
    ) -> tuple[Tensor, int]:
        raise UnsupportedModel(f"bridge rows need a replay, and {self.name} has none")

    def run(
        self,
        embeds: Tensor,
        mode: AttentionMode,
        head_rows: Tensor,
        *,
        canvas: Canvas | None = None,
        position_ids: Tensor | None = None,
        skip_head: bool = False,
    ) -> HeadOutput:
        assert canvas is not None
        interception = Interception(
            canvas, embeds, mode, self._table, self._head, head_rows, self.row_sparse_linear
        )
        with interception:
            logits = _logits_of(
                self.call(self.model, canvas.ids, canvas.valid if canvas.padded else None)
            )
        if interception.lookups != 1:
            raise UnsupportedModel(
                f"{self.name} looks up its input embeddings {interception.lookups} times; "
                "expected once, in the table that was given"
            )
        if not interception.attentions:
            raise UnsupportedModel(
                f"{self.name} never called F.scaled_dot_product_attention{self._why_not()}"
            )
        if interception.head_input is None:
            return HeadOutput(take_rows(logits, head_rows), logits[:, :0], logits[:, :0])
        return HeadOutput(logits, *interception.head_input)

    def _why_not(self) -> str:
        if any(isinstance(module, nn.MultiheadAttention) for module in self.model.modules()):
            return ": nn.MultiheadAttention hides it from interception"
        return ", so its attention cannot be intercepted"

    def _prove(self) -> None:
        """Run the model on a small canvas and compare, before anything is built on it."""
        canvas = self._probe_canvas()
        rows = torch.arange(_LENGTH, device=self.device).unsqueeze(0)
        with torch.no_grad():
            expected = _logits_of(self.call(self.model, canvas.ids, None))
            ours = self._head_on_rows(canvas, rows, expected)
        if not agree(ours, expected):
            raise UnsupportedModel(
                f"{self.name} gives other logits when its embeddings and attention are intercepted"
            )
        self._prove_that_rows_meet_in_attention(canvas, rows)
        sparse = self._probe_gradient(canvas, rows)
        self.row_sparse_linear = False
        dense = self._probe_gradient(canvas, rows)
        self.row_sparse_linear = agree(sparse, dense)

    def _head_on_rows(self, canvas: Canvas, rows: Tensor, expected: Tensor) -> Tensor:
        """Logits of all rows; gives up computing the head on some rows if that fails."""
        embeds = self.embed(canvas.ids)
        if self._head is not None:
            some = rows[:, 1:4]
            try:
                picked = self.run(embeds, Plain(), some, canvas=canvas).logits
            except (RuntimeError, IndexError):
                picked = expected[:, :0]
            if picked.shape[1] != some.shape[1] or not agree(picked, take_rows(expected, some)):
                self._head = None
        return self.run(embeds, Plain(), rows, canvas=canvas).logits

    def _prove_that_rows_meet_in_attention(self, canvas: Canvas, rows: Tensor) -> None:
        """With every attention output constant, no row may depend on another's embedding."""
        with torch.enable_grad():
            leaf = self.embed(canvas.ids).detach().requires_grad_()
            nothing = Plain(rows[:, :0])
            logits = self.run(leaf, nothing, rows, canvas=canvas).logits
            for row in _SAMPLED:
                (grad,) = torch.autograd.grad(
                    logits[0, row].square().sum(), leaf, retain_graph=True
                )
                others = [k for k in range(_LENGTH) if k != row]
                if bool(grad[0, others].any()):
                    raise UnsupportedModel(
                        f"the rows of {self.name} influence each other outside "
                        f"F.scaled_dot_product_attention{self._why_not()}"
                    )

    def _probe_gradient(self, canvas: Canvas, rows: Tensor) -> Tensor:
        active = DeferredRows()
        chosen = rows[:, list(_ACTIVE)]
        active.bind(chosen)
        with torch.enable_grad():
            leaf = self.embed(canvas.ids).detach().requires_grad_()
            logits = self.run(leaf, Plain(active), chosen, canvas=canvas).logits
            (grad,) = torch.autograd.grad(logits.float().logsumexp(dim=-1).sum(), leaf)
        return take_rows(grad, chosen)

    def _probe_canvas(self) -> Canvas:
        usable = [k for k in range(self.facts.vocab_size) if k != self.facts.mask_id]
        ids = [usable[7 * k % len(usable)] for k in range(_LENGTH)]
        ids[1] = ids[4] = self.facts.mask_id
        return Canvas.of(torch.tensor([ids], device=self.device))


def _weight_of(model: nn.Module, getter: str) -> Tensor | None:
    found = getattr(model, getter, lambda: None)()
    return getattr(found, "weight", None)


def _logits_of(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple | list):
        logits = output[0]
    if not isinstance(logits, Tensor):
        raise UnsupportedModel(
            f"the model must return logits, a tuple that begins with them or something with "
            f"'logits'; got {type(output).__name__}"
        )
    return logits
