"""A denoiser whose network is compiled once, and captured in CUDA graphs if asked for.

The sets of a step have another size in every step: masks, candidates, active rows. Padded
to a few sizes they neither recompile anything nor need many graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from boe.canvas import Canvas
from boe.denoisers.attention_denoiser import AttentionDenoiser, HeadOutput
from boe.denoisers.attention_modes import AttentionMode, LayerCall, Plain, Recording, Replaying
from boe.denoisers.base import (
    EntropyGradient,
    GradientRequest,
    Keep,
    KeysValues,
    Prediction,
    UnsupportedModel,
    take_rows,
)
from boe.denoisers.frozen_products import FrozenProducts
from boe.denoisers.transformers_model import TransformersDenoiser

BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

_Settings = tuple[tuple[float, int | None, int | None], ...]
"""Scale, window and block size of each layer: constants of the compiled code."""


class CompiledDenoiser(AttentionDenoiser):
    """A transformers denoiser with a compiled forward and a compiled replay.

    Both are one graph each, for all sizes (``fullgraph``, dynamic shapes): whatever |A|, the
    number of masks or of rows in the batch, at most a batch of one and the presence of
    padding have code of their own. The first calls take the compiler's time. What surrounds
    the network (soft writes, entropies, the choice) stays as it is. Late and dense engines,
    bridge rows and the forwards of decodes that keep keys and values run uncompiled.

    Args:
        denoiser: to be compiled; it stays usable.
        buckets: sizes, ascending, to which sets of rows are padded; above the largest, its
            multiples.
        cuda_graphs: replay recorded launches (``mode="reduce-overhead"``): one recording per
            size of batch, canvas and bucket, each with memory of its own.
        backend: of torch.compile.

    Raises:
        UnsupportedModel: not a transformers model, or one that cannot be replayed.
        ValueError: buckets that are not ascending numbers above 1, CUDA graphs on another
            device or with another backend.
    """

    def __init__(
        self,
        denoiser: TransformersDenoiser,
        *,
        buckets: Sequence[int] = BUCKETS,
        cuda_graphs: bool = False,
        backend: str | Callable[..., Any] = "inductor",
    ) -> None:
        if not isinstance(denoiser, TransformersDenoiser):
            raise UnsupportedModel(
                f"only denoisers of transformers models can be compiled, got "
                f"{type(denoiser).__name__}"
            )
        if denoiser.replay_refusal is not None:
            raise UnsupportedModel(
                f"{denoiser.name} cannot be replayed ({denoiser.replay_refusal}), so that there "
                "is no step to compile"
            )
        sizes = tuple(buckets)
        # Sizes 0 and 1 would be compiled on their own.
        if not sizes or sizes[0] < 2 or list(sizes) != sorted(set(sizes)):
            raise ValueError(f"buckets must be ascending numbers above 1, got {sizes}")
        if cuda_graphs and denoiser.device.type != "cuda":
            raise ValueError(f"cuda_graphs needs a model on a GPU, got {denoiser.device}")
        if cuda_graphs and backend != "inductor":
            raise ValueError(f"cuda_graphs needs backend='inductor', got {backend!r}")
        self.inner = denoiser
        self.buckets, self.cuda_graphs = sizes, cuda_graphs
        self.name, self.facts = denoiser.name, denoiser.facts
        self.sum_over_ranks = denoiser.sum_over_ranks
        self._head = _HeadRows()
        denoiser.head.register_forward_pre_hook(self._head.select)
        options: dict[str, Any] = {"fullgraph": True, "backend": backend}
        if cuda_graphs:
            options["mode"] = "reduce-overhead"
        self._forward = torch.compile(self._plain_forward, **options)
        self._replay = torch.compile(self._plain_replay, **options)

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def embedding_table(self) -> Tensor:
        return self.inner.embedding_table

    @property
    def linear_head(self) -> nn.Linear | None:
        return self.inner.linear_head

    def embed(self, ids: Tensor) -> Tensor:
        return self.inner.embed(ids)

    def predict(self, canvas: Canvas, positions: Tensor, keep: Keep = "nothing") -> Prediction:
        if self.cuda_graphs:
            # What the last step's graphs returned may be overwritten from here on.
            torch.compiler.cudagraph_mark_step_begin()
        count = positions.shape[1]
        prediction = super().predict(canvas, self._padded(positions), keep)
        logits = prediction.logits[:, :count]
        # Logits may be kept beyond the step: a step that changes nothing lends them.
        logits = logits.clone() if self.cuda_graphs else logits
        return replace(prediction, logits=logits, positions=positions)

    def predict_window(
        self,
        canvas: Canvas,
        positions: Tensor,
        rows: Tensor | None,
        memory: KeysValues | None = None,
        keep: Keep = "nothing",
    ) -> tuple[Prediction, KeysValues]:
        # What a recording returns is overwritten by the next one: it cannot be kept.
        return self.inner.predict_window(canvas, positions, rows, memory, keep)

    def predict_changed(
        self,
        prediction: Prediction,
        which: Tensor,
        canvas: Canvas,
        positions: Tensor,
        rows: Tensor,
    ) -> Prediction:
        # Every number of canvases would be a recording of its own.
        return self.inner.predict_changed(prediction, which, canvas, positions, rows)

    def replay_batch(self, count: int, batch: int) -> int:
        """At least two, which share their code; powers of two where each has a recording."""
        size = 1 << (count - 1).bit_length() if self.cuda_graphs else count
        return min(batch, max(2, size))

    def replay_products(self, embeds: Tensor) -> AbstractContextManager[object]:
        """The same for replays of all sizes: with others they would be another graph."""
        return FrozenProducts()

    def entropy_gradient(self, prediction: Prediction, request: GradientRequest) -> EntropyGradient:
        return super().entropy_gradient(
            prediction, replace(request, active=self._padded(request.active))
        )

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
        length = embeds.shape[1]
        if position_ids is None:
            position_ids = torch.arange(length, device=embeds.device).expand(embeds.shape[0], -1)
        rows = self._padded(head_rows)
        recording = isinstance(mode, Recording) and not mode.keep_queries
        if recording or (isinstance(mode, Plain) and mode.active_idx is None):
            padding = canvas.valid if canvas is not None and canvas.padded else None
            _vary((embeds, rows, position_ids, padding), (0, 1))
            output, layers = self._forward(embeds, rows, position_ids, padding, skip_head)
            if isinstance(mode, Recording):
                mode.layers.extend(layers)
        elif isinstance(mode, Replaying):
            layers = mode.layers
            keys, values = [layer.k for layer in layers], [layer.v for layer in layers]
            _vary((embeds, rows, position_ids, mode.rows, layers[0].key_padding_mask), (0, 1))
            _vary((*keys, *values), (0, 2))
            settings = tuple((layer.scale, layer.window, layer.block_size) for layer in layers)
            output = self._replay(
                embeds,
                rows,
                position_ids,
                mode.rows,
                keys,
                values,
                layers[0].key_padding_mask,
                settings,
                mode.local,
                skip_head,
            )
        else:
            return self.inner.run(
                embeds,
                mode,
                head_rows,
                canvas=canvas,
                position_ids=position_ids,
                skip_head=skip_head,
            )
        logits, picked, hidden = output
        count = head_rows.shape[1]
        return HeadOutput(logits if skip_head else logits[:, :count], picked[:, :count], hidden)

    def _plain_forward(
        self,
        embeds: Tensor,
        head_rows: Tensor,
        position_ids: Tensor,
        padding: Tensor | None,
        skip_head: bool,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], list[LayerCall]]:
        mode = Recording()
        output = self._network(embeds, mode, head_rows, position_ids, padding, skip_head)
        return output, mode.layers

    def _plain_replay(
        self,
        embeds: Tensor,
        head_rows: Tensor,
        position_ids: Tensor,
        rows: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        padding: Tensor | None,
        settings: _Settings,
        local: bool,
        skip_head: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        layers = [
            LayerCall(None, k, v, padding, *options)
            for k, v, options in zip(keys, values, settings, strict=True)
        ]
        mode = Replaying(layers, rows, local=local)
        return self._network(embeds, mode, head_rows, position_ids, None, skip_head)

    def _network(
        self,
        embeds: Tensor,
        mode: AttentionMode,
        head_rows: Tensor,
        position_ids: Tensor,
        padding: Tensor | None,
        skip_head: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``TransformersDenoiser.run``, whose hooks cannot be set while tracing."""
        inner, head = self.inner, self._head
        inputs: dict[str, Any] = {
            "inputs_embeds": embeds,
            "position_ids": position_ids + inner.capabilities.position_offset,
            **inner.attention_options(mode),
        }
        if padding is not None:
            inputs["attention_mask"] = padding
        head.rows, head.skip = head_rows, skip_head
        logits = inner.model(**inputs).logits
        picked, hidden = head.picked, head.hidden
        head.rows = head.picked = head.hidden = None
        assert picked is not None
        assert hidden is not None
        return logits, picked, hidden

    def _padded(self, rows: Tensor) -> Tensor:
        """``rows`` (B, N) padded with −1 to a bucket."""
        count = rows.shape[1]
        if not count:
            # An empty set stays one, and needs no graph: nothing asks for its rows.
            return rows
        size = next((size for size in self.buckets if size >= count), None)
        if size is None:
            size = -(-count // self.buckets[-1]) * self.buckets[-1]
        return torch.nn.functional.pad(rows, (0, size - count), value=-1)


def _vary(tensors: Sequence[Tensor | None], dims: tuple[int, ...]) -> None:
    """Let the sizes of dimensions vary without another compilation.

    Marked one by one: what ``dynamic=True`` takes to be variable it also takes to be equal
    where sizes happen to agree, such as |A| and the number of heads.
    """
    for tensor in tensors:
        if tensor is not None:
            for dim in dims:
                torch._dynamo.maybe_mark_dynamic(tensor, dim)


class _HeadRows:
    """Has the head compute some rows only, for the length of one traced call."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self.skip = False
        self.picked: Tensor | None = None
        self.hidden: Tensor | None = None

    def select(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.rows is None:
            return None
        self.hidden = inputs[0]
        self.picked = take_rows(inputs[0], self.rows)
        return (self.picked[:, :0] if self.skip else self.picked,)
