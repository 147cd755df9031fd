"""Forwards of some rows, against keys and values that earlier forwards left in the others.

What a decode does that reuses the prompt and the blocks that are done (docs/denoisers.md).
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
    """Keys and values of whole canvases, layer by layer."""

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
        before: keys and values of the other rows; zeros where there are none yet.
        layers: keys and values of the whole canvas after this forward.
    """

    rows: Tensor
    key_padding_mask: Tensor | None
    length: int
    before: list[LayerCall] | None = None
    layers: list[LayerCall] = field(default_factory=list)

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
        self.layers.append(
            replace(
                call,
                q=None,
                k=self._written(k, call.k),
                v=self._written(v, call.v),
                key_padding_mask=self.key_padding_mask,
            )
        )
        return out

    def _written(self, whole: Tensor, at_rows: Tensor) -> Tensor:
        """A copy of ``whole`` (B, H, L, D) with ``at_rows`` (B, H, R, D) in the window."""
        # Padding goes to a spare row: nothing has to be counted.
        target = torch.where(self.rows < 0, self.length, self.rows)[:, None, :, None]
        spare = torch.nn.functional.pad(whole, (0, 0, 0, 1))
        return spare.scatter_(2, target.expand_as(at_rows), at_rows)[:, :, :-1]


def check_window(denoiser: AttentionDenoiser, keep: Keep) -> None:
    """Raise unless ``denoiser`` can be run on some rows, keeping what ``keep`` says.

    Raises:
        UnsupportedModel: rows depend on each other outside attention, or on the time.
        ValueError: ``keep`` asks for a graph, or for the queries of all rows.
    """
    if denoiser.replay_refusal is not None:
        raise UnsupportedModel(
            f"{denoiser.name} cannot be run on a window of rows ({denoiser.replay_refusal})"
        )
    if denoiser.facts.time_conditioned:
        raise UnsupportedModel(
            f"{denoiser.name} takes the time as an input, with which the keys and values of all "
            "rows change: none can be reused"
        )
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
