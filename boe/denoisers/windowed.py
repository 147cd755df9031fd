"""Forwards of some rows, against keys and values that earlier forwards left in the others.

What a decode with a KV cache does (docs/denoisers.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers.attention_modes import AttentionMode, LayerCall, Replaying
from boe.denoisers.base import (
    Keep,
    KeysValues,
    UnsupportedModel,
    slots_of,
    take_rows,
)
from boe_kernels import active_row_attention

if TYPE_CHECKING:
    from boe.denoisers.attention_denoiser import AttentionDenoiser


@dataclass(frozen=True)
class LayerMemory(KeysValues):
    """Keys and values of whole canvases, layer by layer.

    They are written in place, by the forward that the memory is given to
    (:meth:`boe.denoisers.Denoiser.predict_window`).
    """

    layers: list[LayerCall]

    def select(self, rows: Sequence[int], length: int) -> LayerMemory:
        index = torch.tensor(rows, device=self.layers[0].k.device)
        return LayerMemory([layer.select(index, length) for layer in self.layers])


@dataclass
class Windowed(AttentionMode):
    """Attention of some rows, against what earlier forwards left in the others.

    Attributes:
        rows: int64 (B, R), padded with −1.
        key_padding_mask: bool (B, L) of the whole canvas, or ``None``.
        length: L.
        before: keys and values of the other rows, into which those of the ``rows`` are
            written; zeros where there are none yet.
        layers: keys and values of the whole canvas after this forward.
    """

    rows: Tensor
    key_padding_mask: Tensor | None
    length: int
    before: list[LayerCall] | None = None
    layers: list[LayerCall] = field(default_factory=list)

    def __post_init__(self) -> None:
        first = self.rows[:, :1]
        self._batch = torch.arange(len(self.rows), device=self.rows.device).unsqueeze(1)
        self._target = torch.where(self.rows < 0, first, self.rows).clamp_min(0)
        self._padding = (self.rows < 0)[:, None, :, None]
        self._empty = (first < 0)[:, None, :, None]

    def attend(self, call: LayerCall) -> Tensor:
        assert call.q is not None
        if self.before is None:
            shape = (*call.k.shape[:2], self.length, call.k.shape[3])
            k, v = call.k.new_zeros(shape), call.v.new_zeros(shape)
        else:
            known = self.before[len(self.layers)]
            k, v = known.k, known.v
        out = active_row_attention(
            call.q,
            call.k,
            call.v,
            k,
            v,
            self.rows,
            key_padding_mask=self.key_padding_mask,
            scale=call.scale,
            window=call.window,
            block_size=call.block_size,
        )
        self._write(k, call.k)
        self._write(v, call.v)
        self.layers.append(replace(call, q=None, k=k, v=v, key_padding_mask=self.key_padding_mask))
        return out

    def _write(self, whole: Tensor, at_rows: Tensor) -> None:
        """Put ``at_rows`` (B, H, R, D) into ``whole`` (B, H, L, D), in place.

        Nobody else reads it any more: gradients and lookaheads of the step before are done,
        and a step that failed is made again with the same rows, whatever they hold.
        """
        # Padding writes once more what the first row writes, or what row 0 holds where no row
        # is run: nothing has to be counted.
        again = torch.where(self._empty, whole[:, :, :1], at_rows[:, :, :1])
        values = torch.where(self._padding, again, at_rows)
        whole.transpose(1, 2)[self._batch, self._target] = values.transpose(1, 2)


def check_window(denoiser: AttentionDenoiser, keep: Keep) -> None:
    """Raise unless ``denoiser`` can be run on some rows, keeping what ``keep`` says.

    Raises:
        UnsupportedModel: rows depend on each other outside attention, or on the time.
        ValueError: ``keep`` asks for a graph, or for the queries of all rows.
    """
    if denoiser.rows_refusal is not None:
        raise UnsupportedModel(denoiser.rows_refusal)
    if keep not in ("nothing", "keys_values"):
        raise ValueError(
            "a forward of a window of rows keeps 'nothing' or 'keys_values', as engine='replay' "
            f"without bridge rows needs; got keep={keep!r}"
        )


@torch.no_grad()
def run_window(
    denoiser: AttentionDenoiser,
    canvas: Canvas,
    positions: Tensor,
    rows: Tensor,
    memory: KeysValues | None,
) -> tuple[Tensor, Tensor, LayerMemory]:
    """Embeddings of the canvas, logits at ``positions``, and what the forward leaves."""
    assert memory is None or isinstance(memory, LayerMemory)
    embeds = denoiser.embed(canvas.ids)
    mode = Windowed(
        rows,
        canvas.valid if canvas.padded else None,
        canvas.length,
        None if memory is None else memory.layers,
    )
    output = denoiser.run(
        take_rows(embeds, rows),
        mode,
        slots_of(denoiser.facts.row_of(positions), rows, canvas.length),
        position_ids=rows.clamp_min(0),
    )
    return embeds, denoiser.suppress(output.logits), LayerMemory(mode.layers)


@torch.no_grad()
def run_changed(
    denoiser: AttentionDenoiser,
    canvas: Canvas,
    positions: Tensor,
    rows: Tensor,
    layers: list[LayerCall],
) -> Tensor:
    """Logits at ``positions`` from the ``rows`` alone; the others keep what ``layers`` hold."""
    output = denoiser.run(
        take_rows(denoiser.embed(canvas.ids), rows),
        Replaying(layers, rows),
        slots_of(denoiser.facts.row_of(positions), rows, canvas.length),
        position_ids=rows.clamp_min(0),
    )
    return denoiser.suppress(output.logits)
