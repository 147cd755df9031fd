"""The forwards of a decode: suppressed ids, and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers.base import Denoiser, Keep, Prediction


class Forwards:
    """A denoiser as the decoding loop runs it.

    Args:
        guidance: w of classifier-free guidance; 0 for none. The logits become
            z + w·(z − z_u), where z_u are those of the canvas whose tokens of the start are
            masked too (Nie et al., 2025). Such a prediction costs two forwards. What it
            keeps for a gradient belongs to z: steering differentiates the conditional
            branch, with soft writes from the guided distribution.
        suppressed: ids that are never written, besides the denoiser's own.
    """

    def __init__(
        self, denoiser: Denoiser, guidance: float = 0.0, suppressed: Sequence[int] = ()
    ) -> None:
        self.denoiser = denoiser
        self.guidance = guidance
        self.passes = 2 if guidance else 1
        self._suppressed: Tensor | None = None
        if suppressed:
            self._suppressed = torch.tensor(sorted(set(suppressed)), device=denoiser.device)

    def predict(
        self, canvas: Canvas, given: Tensor, positions: Tensor, keep: Keep = "nothing"
    ) -> Prediction:
        """Logits at ``positions`` (B, P); ``given`` (B, L) marks the tokens of the start."""
        prediction = self.denoiser.predict(canvas, positions, keep)
        logits = prediction.logits
        if self.guidance:
            ids = canvas.ids.masked_fill(given & canvas.valid, self.denoiser.facts.mask_id)
            free = self.denoiser.predict(Canvas(ids, canvas.lengths), positions).logits
            guided = logits + self.guidance * (logits - free)
            # −∞ − −∞ at the denoiser's own suppressed ids would be NaN.
            logits = torch.where(logits == -torch.inf, logits, guided)
        if self._suppressed is not None:
            logits = logits.index_fill(-1, self._suppressed, -torch.inf)
        return prediction if logits is prediction.logits else replace(prediction, logits=logits)
