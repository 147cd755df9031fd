"""What a sampler needs of a model: to predict, and to differentiate on active rows.

A *position* is a place on the canvas; the logits that predict position j stand in *row*
``facts.row_of(j)``, which is j itself except in models whose logits are shifted.
Index sets are int64 (B, N), padded with −1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from boe.canvas import Canvas

Engine = Literal["replay", "late", "dense"]
ENGINES: tuple[Engine, ...] = ("replay", "late", "dense")
Context = Literal["frozen", "full"]
CONTEXTS: tuple[Context, ...] = ("frozen", "full")
BridgeRule = Literal["received_paid", "received", "hidden_change"]
Keep = Literal["nothing", "keys_values", "attention", "graph", "dense_graph"]
"""What a prediction keeps for a gradient: per-layer keys and values (replay), these with
queries and hidden states (replay with bridge rows), or the autograd graph."""


class UnsupportedModel(ValueError):
    """The model cannot do what was asked; the message says why and what can be done."""


@dataclass(frozen=True)
class DenoiserFacts:
    """What is fixed about a denoiser.

    Attributes:
        mask_id: id of the mask token.
        vocab_size: V, the width of the logits.
        suppressed_ids: ids that are never written (the mask, padded vocabulary rows).
        logits_shift: the row that predicts position j is j + logits_shift, at least 0.
        time_conditioned: the model takes the diffusion time as an input, so that the
            surrogate forward at α = 0 is not the current forward.
        max_length: the longest canvas, or ``None``.
        block_length: attention is block-causal: a position sees those up to the end of its
            own block of this many, counted from position 0. ``None`` if it sees all.
    """

    mask_id: int
    vocab_size: int
    suppressed_ids: tuple[int, ...]
    logits_shift: int = 0
    time_conditioned: bool = False
    max_length: int | None = None
    block_length: int | None = None

    def row_of(self, positions: Tensor) -> Tensor:
        """Rows that predict the given positions; padding (−1) stays padding."""
        if self.logits_shift == 0:
            return positions
        return torch.where(positions < 0, -1, (positions + self.logits_shift).clamp_min(0))


class KeysValues(ABC):
    """Keys and values that forwards left at the rows of a batch of canvases."""

    @abstractmethod
    def select(self, rows: Sequence[int], length: int) -> KeysValues:
        """Those of the given rows of the batch, cut to canvases of ``length``."""


@dataclass(frozen=True)
class Prediction:
    """Logits of one forward, and what was kept for a gradient.

    Attributes:
        logits: (B, P, V), −inf at suppressed ids, in the model's dtype.
        positions: int64 (B, P), padded with −1, whose logits are arbitrary.
        state: what ``keep`` asked for, private to the denoiser.
    """

    canvas: Canvas
    logits: Tensor
    positions: Tensor
    state: Any = None


@dataclass(frozen=True)
class GuidedState:
    """What a guided prediction keeps for a gradient through both of its branches.

    Its logits are z + weight·(z − z_u); z are those of ``conditional``, z_u of ``free``.
    """

    conditional: Prediction
    free: Prediction
    weight: float


@dataclass(frozen=True)
class GradientRequest:
    """Which gradient of the probes' entropy is wanted (method section, docs/method.md).

    Attributes:
        candidates: positions to differentiate with respect to (the embeddings e_i).
        probes: positions S whose entropies are summed.
        active: rows A through which the backward may pass, ascending. They must include
            the candidates; a probe whose row is not active contributes nothing.
        alpha: candidates are evaluated at e_m + α·Δe.
        context: whether rows outside A keep the keys and values of the current forward
            ("frozen") or a second forward is run with the soft writes ("full"). Only
            matters at α > 0, and in time-conditioned models.
        engine: "replay", "late" or "dense".
        subtract_self: remove each candidate's own entropy from its gradient, row-locally.
        top_k: soft writes use the k most probable ids only.
        revealed: int64 (B,), how many positions this step reveals, by default 1 each.
            Time-conditioned models take the surrogate at the time that follows.
    """

    candidates: Tensor
    probes: Tensor
    active: Tensor
    alpha: float = 0.0
    context: Context = "frozen"
    engine: Engine = "replay"
    subtract_self: bool = False
    top_k: int | None = None
    revealed: Tensor | None = None


@dataclass(frozen=True)
class EntropyGradient:
    """The gradient and what it cost.

    Attributes:
        gradient: g_i = ∂F/∂e_i, float32 (float64) (B, C, D), zero at padding.
        delta: Δe_i = Σ_v p_v E_v − e_m, as ``gradient``.
        surrogate: F = Σ_S H_j in nats, (B,), over the probes whose rows are active.
        forwards: full forwards spent besides the prediction's own.
        backwards: backward passes.
        replayed_rows: (B,) rows run forward again.
        backward_rows: (B,) rows that the backward passed through.
    """

    gradient: Tensor
    delta: Tensor
    surrogate: Tensor
    forwards: int
    backwards: int
    replayed_rows: Tensor
    backward_rows: Tensor


class Denoiser(ABC):
    """A masked diffusion model.

    Attributes:
        differentiates_guidance: whether ``entropy_gradient`` understands a
            :class:`GuidedState`.
    """

    facts: DenoiserFacts
    differentiates_guidance: ClassVar[bool] = False

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where canvases must be."""

    @property
    @abstractmethod
    def embedding_table(self) -> Tensor:
        """E (V, D), with the model's embedding scale multiplied in."""

    @property
    def rows_refusal(self) -> str | None:
        """Why the model cannot be run on some of its rows, or ``None`` if it can.

        Who overrides :meth:`predict_window` and :meth:`predict_changed` overrides this, too.
        """
        return f"{type(self).__name__} cannot be run on some of its rows"

    @abstractmethod
    def predict(self, canvas: Canvas, positions: Tensor, keep: Keep = "nothing") -> Prediction:
        """Logits that predict ``positions``, int64 (B, P) padded with −1."""

    def predict_window(
        self,
        canvas: Canvas,
        positions: Tensor,
        rows: Tensor | None,
        memory: KeysValues | None = None,
        keep: Keep = "nothing",
    ) -> tuple[Prediction, KeysValues]:
        """As :meth:`predict` from a forward of some rows, which attend to what earlier
        forwards left in the others; and what this one leaves for the next.

        The prediction serves replays as one of the whole canvas would. Rows that no forward
        has run yet hold zeros: they must be invisible to the ``rows`` (later blocks of a
        block-causal model).

        Args:
            rows: int64 (B, R), ascending, padded with −1; among them those that predict
                ``positions``. ``None`` for all rows, as :meth:`predict` runs them.
            memory: from the call before on the same canvases, if there was one. It is used up:
                keys and values of the ``rows`` are written into it, and what is returned may
                share its memory, as may the state of the prediction that it came with.
            keep: "nothing" or "keys_values".

        Raises:
            UnsupportedModel: the model cannot be run on some of its rows, or its rows change
                with the time.
            ValueError: ``keep`` asks for more than a forward of some rows has.
        """
        raise UnsupportedModel(self.rows_refusal)

    def predict_changed(
        self,
        prediction: Prediction,
        which: Tensor,
        canvas: Canvas,
        positions: Tensor,
        rows: Tensor,
    ) -> Prediction:
        """Logits of canvases that differ from the prediction's in few rows, from these alone.

        All other rows keep the keys and values of the prediction's forward: a frozen context.

        Args:
            prediction: made with keep="keys_values" or "attention".
            which: int64 (N,), the batch row of ``prediction`` that each canvas comes from.
            canvas: N canvases of the same length.
            positions: int64 (N, P), padded with −1, whose logits are wanted.
            rows: int64 (N, R), ascending, padded with −1: those whose ids changed, and those
                that predict ``positions``.

        Raises:
            UnsupportedModel: the model cannot be run on some of its rows, or its rows change
                with the time.
            ValueError: the prediction did not keep keys and values.
        """
        raise UnsupportedModel(self.rows_refusal)

    @abstractmethod
    def entropy_gradient(self, prediction: Prediction, request: GradientRequest) -> EntropyGradient:
        """Gradient of the probes' entropy with respect to the candidates' embeddings.

        Raises:
            UnsupportedModel: the engine cannot run on this model.
            ValueError: the request contradicts itself, or the prediction did not keep
                what the engine needs.
        """

    @abstractmethod
    def bridge_scores(
        self, prediction: Prediction, request: GradientRequest, rule: BridgeRule
    ) -> tuple[Tensor, int]:
        """How much each row carries from candidates to probes: (B, L), and forwards spent.

        ``request.active`` is not read. The prediction must have kept "attention".
        """


def required_keep(engine: Engine, bridges: bool) -> Keep:
    """What a prediction must keep for a gradient by ``engine``."""
    if engine == "late":
        return "graph"
    if engine == "dense":
        return "dense_graph"
    return "attention" if bridges else "keys_values"


def mark_rows(rows: Tensor, length: int) -> Tensor:
    """bool (B, L), True at the ``rows`` (B, A) padded with −1, which may repeat."""
    # A spare column takes the padding.
    marked = rows.new_zeros(rows.shape[0], length + 1, dtype=torch.bool)
    return marked.scatter_(1, torch.where(rows < 0, length, rows), True)[:, :-1]


def slots_of(members: Tensor, rows: Tensor, length: int) -> Tensor:
    """Where each of ``members`` (B, N) stands in ``rows`` (B, A); −1 where it does not."""
    batch = members.shape[0]
    table = rows.new_full((batch, length + 1), -1)
    numbers = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    table.scatter_(1, torch.where(rows < 0, length, rows), numbers)
    table[:, length] = -1
    return table.gather(1, torch.where(members < 0, length, members))


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, N) of ``x`` (B, L, ...); padding reads row 0."""
    batch = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    return x[batch, rows.clamp_min(0)]
