"""Denoisers whose attention we compute: what they share, whoever computes the rest.

A subclass says how one forward is run under an :class:`AttentionMode`; predicting,
differentiating and ranking bridge rows follow from that.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from boe.canvas import Canvas
from boe.denoisers.adjoint import graph_gradient, replay_gradient, soft_canvas
from boe.denoisers.attention_modes import (
    AttentionMode,
    LayerCall,
    Plain,
    Recording,
    StopGradient,
)
from boe.denoisers.base import (
    BridgeRule,
    Denoiser,
    EntropyGradient,
    GradientRequest,
    GuidedState,
    Keep,
    KeysValues,
    Prediction,
    UnsupportedModel,
)
from boe.denoisers.bridges import attention_paid, attention_received
from boe.denoisers.frozen_products import frozen_products_for
from boe.denoisers.guided import branches_of, check_guided
from boe.denoisers.windowed import LayerMemory, check_window, run_changed, run_window
from boe_kernels import DeferredRows, entropy_stats, linear_entropy


@dataclass
class RecordedForward:
    """What a prediction keeps for replay. ``hidden`` is the head's input, if asked for."""

    embeds: Tensor
    layers: list[LayerCall]
    hidden: Tensor | None

    def select(self, rows: Tensor) -> RecordedForward:
        """What a replay needs of the given batch rows (N,)."""
        return RecordedForward(self.embeds[rows], [call.select(rows) for call in self.layers], None)


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


class AttentionDenoiser(Denoiser):
    """A denoiser that can be run from embeddings under an attention mode.

    Attributes:
        name: what error messages call the model.
        replay_refusal: why the model cannot be run on a subset of rows, or ``None``.
        sum_over_ranks: adds what other processes have to a sum over this one's heads, where
            heads are shared out (:mod:`boe.denoisers.tensor_parallel`).
    """

    differentiates_guidance: ClassVar[bool] = True
    name: str
    replay_refusal: str | None = None
    sum_over_ranks: Callable[[Tensor], Tensor] | None = None
    _suppressed: Tensor | None = None

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings (B, L, D) of ids (B, L)."""

    @abstractmethod
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

    @property
    def rows_refusal(self) -> str | None:
        if self.replay_refusal is not None:
            return f"{self.name} cannot be run on some of its rows ({self.replay_refusal})"
        if self.facts.time_conditioned:
            return (
                f"{self.name} takes the time as an input, with which the keys and values of all "
                "rows change: none can be reused"
            )
        return None

    @property
    def linear_head(self) -> nn.Linear | None:
        """The head, where it is exactly a linear map of ``HeadOutput.picked``."""
        return None

    def for_surrogate(self, prediction: Prediction, request: GradientRequest) -> AttentionDenoiser:
        """The denoiser as the surrogate forward sees it: itself, unless time moves on."""
        return self

    def replay_batch(self, count: int, batch: int) -> int:
        """With how many sequences a replay of ``count`` ≥ 1 of a ``batch`` is run: as many."""
        return count

    def replay_products(self, embeds: Tensor) -> AbstractContextManager[object]:
        """Inside it a replay of ``embeds`` (B, A, D) runs its linear layers."""
        return frozen_products_for(embeds)

    def predict(self, canvas: Canvas, positions: Tensor, keep: Keep = "nothing") -> Prediction:
        self._check_canvas(canvas)
        rows = self.facts.row_of(positions)
        with torch.no_grad():
            embeds = self.embed(canvas.ids)
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

    def predict_window(
        self,
        canvas: Canvas,
        positions: Tensor,
        rows: Tensor | None,
        memory: KeysValues | None = None,
        keep: Keep = "nothing",
    ) -> tuple[Prediction, KeysValues]:
        self._check_canvas(canvas)
        check_window(self, keep)
        if rows is None:
            whole = self.predict(canvas, positions, "keys_values")
            memory = LayerMemory(whole.state.layers)
            return (whole if keep == "keys_values" else replace(whole, state=None)), memory
        embeds, logits, left = run_window(self, canvas, positions, rows, memory)
        state = None if keep == "nothing" else RecordedForward(embeds, left.layers, None)
        return Prediction(canvas, logits, positions, state), left

    def predict_changed(
        self,
        prediction: Prediction,
        which: Tensor,
        canvas: Canvas,
        positions: Tensor,
        rows: Tensor,
    ) -> Prediction:
        self._check_canvas(canvas)
        check_window(self, "nothing")
        _require_state(prediction, RecordedForward, "'keys_values' or 'attention'")
        layers = [call.select(which) for call in prediction.state.layers]
        logits = run_changed(self, canvas, positions, rows, layers)
        return Prediction(canvas, logits, positions)

    def entropy_gradient(self, prediction: Prediction, request: GradientRequest) -> EntropyGradient:
        require_autograd()
        if isinstance(prediction.state, GuidedState):
            check_guided(self.facts, request, prediction.state)
        if request.engine == "replay":
            if self.replay_refusal is not None:
                raise UnsupportedModel(
                    f"{self.name} cannot be replayed ({self.replay_refusal}); "
                    "ask for engine='late' or engine='dense'"
                )
            for branch, _ in branches_of(prediction):
                _require_state(branch, RecordedForward, "'keys_values' or 'attention'")
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
            received = self._over_ranks(received.sum(dim=0))
            if rule == "received":
                return received, 0
            paid = torch.stack(
                [attention_paid(layer, request.candidates) for layer in state.layers]
            )
            return received * self._over_ranks(paid.sum(dim=0)), 0

    def _over_ranks(self, sums: Tensor) -> Tensor:
        return sums if self.sum_over_ranks is None else self.sum_over_ranks(sums)

    def suppress(self, logits: Tensor) -> Tensor:
        """``logits`` with −inf at the suppressed ids."""
        return logits.index_fill(-1, self._suppressed_ids(), -torch.inf)

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
        branch = (embeds, mode, 1.0)
        return self.summed_guided_entropy((branch,), rows, canvas=canvas, position_ids=position_ids)

    def summed_guided_entropy(
        self,
        branches: Sequence[tuple[Tensor, AttentionMode, float]],
        rows: Tensor,
        *,
        canvas: Canvas | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """The same of weighted sums of several forwards' logits.

        Args:
            branches: embeddings, attention mode and weight of each forward.
        """
        head, suppressed = self.linear_head, self._suppressed_ids()
        outputs = [
            self.run(
                embeds,
                mode,
                rows,
                canvas=canvas,
                position_ids=position_ids,
                skip_head=head is not None,
            )
            for embeds, mode, _ in branches
        ]
        weights = [weight for _, _, weight in branches]
        if head is not None:
            # Weights add up to 1, so what goes into a linear head can be summed in its place.
            picked = _weighted([output.picked for output in outputs], weights)
            stats = linear_entropy(picked, head.weight, head.bias, suppressed_ids=suppressed)
        else:
            logits = _weighted([output.logits for output in outputs], weights)
            stats = entropy_stats(logits, suppressed_ids=suppressed)
        return torch.where(rows >= 0, stats.entropy, 0.0).sum(dim=1)

    def _suppressed_ids(self) -> Tensor:
        """The suppressed ids on the model's device, copied there once."""
        if self._suppressed is None:
            self._suppressed = torch.tensor(self.facts.suppressed_ids, device=self.device)
        return self._suppressed

    def _check_canvas(self, canvas: Canvas) -> None:
        if canvas.ids.device != self.device:
            raise ValueError(
                f"canvas must be on the model's device {self.device}, got {canvas.ids.device}"
            )
        longest = self.facts.max_length
        if longest is not None and canvas.length > longest:
            raise ValueError(f"canvas has {canvas.length} positions; the model takes {longest}")


def check_ids(vocabulary: int, mask_id: int, suppressed_ids: tuple[int, ...]) -> tuple[int, ...]:
    """``suppressed_ids`` with the mask, in order and once each.

    Raises:
        ValueError: an id is not in [0, vocabulary).
    """
    for name, ids in (("mask_id", (mask_id,)), ("suppressed_ids", suppressed_ids)):
        for index in ids:
            if not 0 <= index < vocabulary:
                raise ValueError(f"{name} must be in [0, {vocabulary}), got {index}")
    return tuple(sorted({mask_id, *suppressed_ids}))


def check_block_length(block_length: int | None) -> None:
    """Raises a ValueError unless ``block_length`` is ``None`` or at least 1."""
    if block_length is not None and block_length < 1:
        raise ValueError(f"block_length must be at least 1, got {block_length}")


def check_shift(logits_shift: int) -> None:
    """Raises a ValueError unless ``logits_shift`` is 0 or −1."""
    if logits_shift not in (0, -1):
        raise ValueError(f"logits_shift must be 0 or -1, got {logits_shift}")


def require_autograd() -> None:
    """Gradients work inside ``no_grad``, but not inside ``inference_mode``."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "gradient-guided sampling cannot run under torch.inference_mode(); use torch.no_grad()"
        )


def _weighted(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.stack([part * w for part, w in zip(parts, weights, strict=True)]).sum(dim=0)


def _require_state(prediction: Prediction, kind: type, keep: str) -> None:
    if not isinstance(prediction.state, kind):
        raise ValueError(f"this engine needs a prediction made with keep={keep}")
