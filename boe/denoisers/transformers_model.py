"""Denoisers from transformers models: BERT, RoBERTa, DistilBERT, ModernBERT, EuroBERT …

Any model qualifies whose attention goes through transformers' attention interface. The
model's own code computes everything but attention; for a replay it is simply run on the
active rows, which is right wherever the model works row by row outside attention. What a
model can do is found out by running it on a small canvas (:mod:`boe.denoisers.probing`),
not by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from boe.canvas import Canvas
from boe.denoisers.adjoint import graph_gradient, replay_gradient, soft_canvas
from boe.denoisers.attention_modes import (
    ATTENTION_NAME,
    AttentionMode,
    LayerCall,
    Plain,
    Recording,
    StopGradient,
    register_attention,
)
from boe.denoisers.base import (
    BridgeRule,
    Denoiser,
    DenoiserFacts,
    EntropyGradient,
    GradientRequest,
    Keep,
    Prediction,
    UnsupportedModel,
    take_rows,
)
from boe.denoisers.bridges import attention_paid, attention_received
from boe.denoisers.probing import Capabilities, probe
from boe_kernels import DeferredRows, entropy_stats, linear_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class RecordedForward:
    """What a prediction keeps for replay. ``hidden`` is the head's input, if asked for."""

    embeds: Tensor
    layers: list[LayerCall]
    hidden: Tensor | None


@dataclass
class ForwardGraph:
    """What a prediction keeps for a backward through its own graph."""

    embeds: Tensor
    logits: Tensor
    active: DeferredRows


@dataclass
class HeadOutput:
    """Logits of the asked rows (B, R, V), the head's input there and in all rows."""

    logits: Tensor
    picked: Tensor
    hidden: Tensor


class TransformersDenoiser(Denoiser):
    """A transformers model as a masked diffusion denoiser.

    The model is put into evaluation mode, its parameters are frozen and its attention is
    set to ours. It is not changed otherwise, and stays usable.

    Args:
        model: a model whose output has ``logits``, such as a ``...ForMaskedLM``.
        mask_id: id of the mask token.
        suppressed_ids: ids never to be written, besides the mask.
        logits_shift: −1 if row j − 1 of the logits predicts position j.

    Raises:
        UnsupportedModel: attention does not go through transformers' interface, or the
            model cannot be run from embeddings; the message says which.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        mask_id: int,
        *,
        suppressed_ids: tuple[int, ...] = (),
        logits_shift: int = 0,
    ) -> None:
        self.embedding: nn.Embedding = model.get_input_embeddings()
        self.head: Any = model.get_output_embeddings()
        if self.head is None:
            raise UnsupportedModel(f"{type(model).__name__} has no output embeddings")
        vocabulary = self.embedding.weight.shape[0]
        for name, ids in (("mask_id", (mask_id,)), ("suppressed_ids", suppressed_ids)):
            for index in ids:
                if not 0 <= index < vocabulary:
                    raise ValueError(f"{name} must be in [0, {vocabulary}), got {index}")
        if logits_shift not in (0, -1):
            raise ValueError(f"logits_shift must be 0 or -1, got {logits_shift}")
        register_attention()
        model.eval().requires_grad_(False)
        try:
            model.set_attn_implementation(ATTENTION_NAME)
        except ValueError as error:
            raise UnsupportedModel(
                f"{type(model).__name__} does not accept an attention implementation: {error}"
            ) from error
        self.model = model
        self.capabilities = Capabilities()
        self.capabilities = probe(self, mask_id)
        longest = getattr(model.config, "max_position_embeddings", None)
        self.facts = DenoiserFacts(
            mask_id=mask_id,
            vocab_size=vocabulary,
            suppressed_ids=tuple(sorted({mask_id, *suppressed_ids})),
            logits_shift=logits_shift,
            max_length=None if longest is None else longest - self.capabilities.position_offset,
        )
        self._suppressed = torch.tensor(self.facts.suppressed_ids, device=self.device)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def embedding_table(self) -> Tensor:
        scale = self.capabilities.embedding_scale
        return self.embedding.weight if scale == 1.0 else self.embedding.weight * scale

    def predict(self, canvas: Canvas, positions: Tensor, keep: Keep = "nothing") -> Prediction:
        self._check_canvas(canvas)
        rows = self.facts.row_of(positions)
        with torch.no_grad():
            embeds = self.embedding(canvas.ids)
        if keep in ("graph", "dense_graph"):
            require_autograd()
            active = DeferredRows()
            mode = Plain(active) if keep == "graph" else StopGradient(active)
            with torch.enable_grad():
                embeds = embeds.detach().requires_grad_()
                logits = self.suppress(self.run(embeds, mode, rows, canvas=canvas).logits)
            return Prediction(
                canvas, logits.detach(), positions, ForwardGraph(embeds, logits, active)
            )
        recording = None if keep == "nothing" else Recording(keep_queries=keep == "attention")
        with torch.no_grad():
            output = self.run(embeds, recording or Plain(), rows, canvas=canvas)
            logits = self.suppress(output.logits)
        if recording is None:
            return Prediction(canvas, logits, positions)
        hidden = output.hidden if keep == "attention" else None
        return Prediction(
            canvas, logits, positions, RecordedForward(embeds, recording.layers, hidden)
        )

    def entropy_gradient(self, prediction: Prediction, request: GradientRequest) -> EntropyGradient:
        require_autograd()
        if request.engine == "replay":
            refusal = self.capabilities.replay_refusal
            if refusal is not None:
                raise UnsupportedModel(
                    f"{type(self.model).__name__} cannot be replayed ({refusal}); "
                    "ask for engine='late' or engine='dense'"
                )
            _require_state(prediction, RecordedForward, "'keys_values' or 'attention'")
            return replay_gradient(self, prediction, request)
        _require_state(prediction, ForwardGraph, "'graph' or 'dense_graph'")
        return graph_gradient(self, prediction, request)

    def bridge_scores(
        self, prediction: Prediction, request: GradientRequest, rule: BridgeRule
    ) -> tuple[Tensor, int]:
        state = prediction.state
        if not isinstance(state, RecordedForward) or state.hidden is None:
            raise ValueError("bridge_scores needs a prediction made with keep='attention'")
        probes = self.facts.row_of(request.probes)
        with torch.no_grad():
            if rule == "hidden_change":
                embeds, _ = soft_canvas(self, prediction, request)
                moved = self.run(embeds, Plain(), probes[:, :0], canvas=prediction.canvas).hidden
                return (moved - state.hidden).float().norm(dim=-1), 1
            received = torch.stack([attention_received(layer, probes) for layer in state.layers])
            if rule == "received":
                return received.sum(dim=0), 0
            paid = torch.stack(
                [attention_paid(layer, request.candidates) for layer in state.layers]
            )
            return received.sum(dim=0) * paid.sum(dim=0), 0

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
        """One forward of the model from embeddings (B, N, D).

        Args:
            head_rows: int64 (B, R), the rows for which the head is computed; −1 for
                padding, whose logits are arbitrary.
            canvas: gives the padding mask; ``None`` where ``mode`` knows it.
            position_ids: (B, N), 0-based; ``None`` for 0 … N − 1.
            skip_head: leave the logits out, keeping the head's input.
        """
        if position_ids is None:
            position_ids = torch.arange(embeds.shape[1], device=embeds.device)
            position_ids = position_ids.expand(embeds.shape[0], -1)
        inputs: dict[str, Any] = {
            "inputs_embeds": embeds,
            "position_ids": position_ids + self.capabilities.position_offset,
            "boe_mode": mode,
        }
        if canvas is not None and canvas.padded:
            inputs["attention_mask"] = canvas.valid
        with _head_on_rows(self.head, head_rows, skip_head) as head_input:
            logits = self.model(**inputs).logits
        if not head_input:
            raise UnsupportedModel(
                f"{type(self.model).__name__} does not call its output embeddings as a module"
            )
        return HeadOutput(logits, *head_input)

    def suppress(self, logits: Tensor) -> Tensor:
        """``logits`` with −inf at the suppressed ids."""
        return logits.index_fill(-1, self._suppressed, -torch.inf)

    def summed_entropy(
        self,
        embeds: Tensor,
        mode: AttentionMode,
        rows: Tensor,
        *,
        canvas: Canvas | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Σ of the entropies predicted in ``rows`` (B, R) after a forward, (B,) in nats."""
        linear_head = self.capabilities.linear_head
        output = self.run(
            embeds, mode, rows, canvas=canvas, position_ids=position_ids, skip_head=linear_head
        )
        if linear_head:
            head = self.head
            stats = linear_entropy(
                output.picked, head.weight, head.bias, suppressed_ids=self._suppressed
            )
        else:
            stats = entropy_stats(output.logits, suppressed_ids=self._suppressed)
        return torch.where(rows >= 0, stats.entropy, 0.0).sum(dim=1)

    def _check_canvas(self, canvas: Canvas) -> None:
        if canvas.ids.device != self.device:
            raise ValueError(
                f"canvas must be on the model's device {self.device}, got {canvas.ids.device}"
            )
        longest = self.facts.max_length
        if longest is not None and canvas.length > longest:
            raise ValueError(f"canvas has {canvas.length} positions; the model takes {longest}")


def require_autograd() -> None:
    """Gradients work inside ``no_grad``, but not inside ``inference_mode``."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "gradient-guided sampling cannot run under torch.inference_mode(); use torch.no_grad()"
        )


def _require_state(prediction: Prediction, kind: type, keep: str) -> None:
    if not isinstance(prediction.state, kind):
        raise ValueError(f"this engine needs a prediction made with keep={keep}")


@contextmanager
def _head_on_rows(head: nn.Module, rows: Tensor, skip: bool) -> Iterator[list[Tensor]]:
    """Have ``head`` compute the given rows only; yields [its input there, and everywhere].

    A forward pre-hook for the length of one call: every model family wires its head in a
    way of its own, but all of them end in the output embeddings.
    """
    seen: list[Tensor] = []

    def select(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0]
        picked = take_rows(hidden, rows)
        seen[:] = [picked, hidden]
        return (picked[:, :0] if skip else picked,)

    handle = head.register_forward_pre_hook(select)
    try:
        yield seen
    finally:
        handle.remove()
