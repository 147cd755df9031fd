"""The rows of a batch that ask for a gradient, as a batch of their own.

A row whose greedy choice is sure steers nothing, and in most steps most rows are such: to
run them again would cost what their batch costs, for gradients that are zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers.base import EntropyGradient, GradientRequest, GuidedState, Prediction


@dataclass(frozen=True)
class AskingRows:
    """Some rows of a batch, in one order on the host and on the device.

    Attributes:
        batch: how many rows the whole batch has.
        numbers: the chosen ones; index: the same, int64 (N,).
    """

    batch: int
    numbers: tuple[int, ...]
    index: Tensor

    @classmethod
    def of(cls, asks: Tensor, flags: list[bool], size: int) -> AskingRows:
        """The rows that ask, then others until there are ``size``.

        Args:
            asks: bool (B,), and ``flags``: the same on the host.
        """
        numbers = sorted(range(len(flags)), key=lambda row: not flags[row])[:size]
        # Sorted on the device too, which need not wait for an index from the host.
        index = asks.to(torch.int8).argsort(descending=True, stable=True)[:size]
        return cls(len(flags), tuple(numbers), index)

    def prediction(self, whole: Prediction) -> Prediction:
        """These rows' part of a prediction that was made for replay; L stays."""
        canvas = Canvas(
            whole.canvas.ids[self.index], tuple(whole.canvas.lengths[row] for row in self.numbers)
        )
        state = whole.state
        if isinstance(state, GuidedState):
            state = replace(
                state,
                conditional=self.prediction(state.conditional),
                free=self.prediction(state.free),
            )
        else:
            state = state.select(self.index)
        return Prediction(canvas, whole.logits[self.index], whole.positions[self.index], state)

    def request(self, whole: GradientRequest) -> GradientRequest:
        """These rows' part of a request."""
        return replace(
            whole,
            candidates=whole.candidates[self.index],
            probes=whole.probes[self.index],
            active=whole.active[self.index],
            revealed=None if whole.revealed is None else whole.revealed[self.index],
        )

    def in_batch(self, part: EntropyGradient) -> EntropyGradient:
        """The whole batch's gradient from these rows', the others' being zero."""
        return replace(
            part,
            gradient=self._spread(part.gradient),
            delta=self._spread(part.delta),
            surrogate=self._spread(part.surrogate),
            replayed_rows=self._spread(part.replayed_rows),
            backward_rows=self._spread(part.backward_rows),
        )

    def _spread(self, part: Tensor) -> Tensor:
        whole = part.new_zeros(self.batch, *part.shape[1:])
        return whole.index_copy_(0, self.index, part)
