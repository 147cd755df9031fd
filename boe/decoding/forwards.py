"""The forwards of a decode: suppressed ids, and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers.base import (
    Denoiser,
    GuidedState,
    Keep,
    KeysValues,
    Prediction,
    UnsupportedModel,
)
from boe.denoisers.guided import branches_of


class Forwards:
    """A denoiser as the decoding loop runs it.

    Args:
        guidance: w of classifier-free guidance; 0 for none. The logits become
            z + w·(z − z_u), where z_u are those of the canvas whose tokens of the start are
            masked too (Nie et al., 2025). Such a prediction costs two forwards. What it
            keeps for a gradient belongs to z: steering differentiates the conditional
            branch, with soft writes from the guided distribution.
        combined: keep both branches for a gradient, of z and of z_u (:class:`GuidedState`).
        suppressed: ids that are never written, besides the denoiser's own.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        guidance: float = 0.0,
        suppressed: Sequence[int] = (),
        combined: bool = False,
    ) -> None:
        if combined and guidance and not denoiser.differentiates_guidance:
            raise UnsupportedModel(
                f"{type(denoiser).__name__} cannot differentiate both branches of guidance; "
                "steer by the conditional branch (guidance_gradient='conditional')"
            )
        self.denoiser = denoiser
        self.guidance = guidance
        self.combined = combined
        self.passes = 2 if guidance else 1
        self._suppressed: Tensor | None = None
        if suppressed:
            self._suppressed = torch.tensor(sorted(set(suppressed)), device=denoiser.device)

    def predict(
        self, canvas: Canvas, given: Tensor, positions: Tensor, keep: Keep = "nothing"
    ) -> Prediction:
        """Logits at ``positions`` (B, P); ``given`` (B, L) marks the tokens of the start."""
        prediction = self.denoiser.predict(canvas, positions, keep)
        if not self.guidance:
            return self._guided(prediction, None)
        free = self._unconditional(canvas, given)
        return self._guided(
            prediction, self.denoiser.predict(free, positions, self._kept_of_free(keep))
        )

    def predict_window(
        self,
        canvas: Canvas,
        given: Tensor,
        positions: Tensor,
        rows: Tensor | None,
        memories: Sequence[KeysValues] = (),
        keep: Keep = "nothing",
    ) -> tuple[Prediction, tuple[KeysValues, ...]]:
        """As :meth:`predict` from the ``rows`` (B, R) alone, and what that leaves for the next
        call; ``memories`` are used up (:meth:`boe.denoisers.Denoiser.predict_window`)."""
        before = memories or (None,) * self.passes
        prediction, memory = self.denoiser.predict_window(canvas, positions, rows, before[0], keep)
        if not self.guidance:
            return self._guided(prediction, None), (memory,)
        free, other = self.denoiser.predict_window(
            self._unconditional(canvas, given), positions, rows, before[1], self._kept_of_free(keep)
        )
        return self._guided(prediction, free), (memory, other)

    def predict_changed(
        self,
        prediction: Prediction,
        which: Tensor,
        canvas: Canvas,
        given: Tensor,
        positions: Tensor,
        rows: Tensor,
    ) -> Prediction:
        """As :meth:`boe.denoisers.Denoiser.predict_changed`, guided."""
        branches = [branch for branch, _ in branches_of(prediction)]
        if len(branches) != self.passes:
            raise ValueError(
                "a lookahead against a frozen context needs keys and values of both branches of "
                "guidance: with BoE, guidance_gradient='combined'"
            )
        changed = self.denoiser.predict_changed(branches[0], which, canvas, positions, rows)
        if not self.guidance:
            return self._guided(changed, None)
        free = self._unconditional(canvas, given)
        other = self.denoiser.predict_changed(branches[1], which, free, positions, rows)
        return self._guided(changed, other)

    def keep(self, canvas: Canvas, given: Tensor) -> Prediction:
        """Keys and values of a canvas for :meth:`predict_changed`, without any logits."""
        prediction = self._kept(canvas)
        if not self.guidance:
            return prediction
        free = self._kept(self._unconditional(canvas, given))
        return replace(prediction, state=GuidedState(prediction, free, self.guidance))

    def _kept(self, canvas: Canvas) -> Prediction:
        nowhere = canvas.ids[:, :0]
        return self.denoiser.predict_window(canvas, nowhere, None, None, "keys_values")[0]

    def _unconditional(self, canvas: Canvas, given: Tensor) -> Canvas:
        ids = canvas.ids.masked_fill(given & canvas.valid, self.denoiser.facts.mask_id)
        return Canvas(ids, canvas.lengths)

    def _kept_of_free(self, keep: Keep) -> Keep:
        return keep if self.combined else "nothing"

    def _guided(self, prediction: Prediction, free: Prediction | None) -> Prediction:
        """``prediction`` guided away from ``free``, and without what may not be written."""
        logits = prediction.logits
        if free is not None:
            guided = logits + self.guidance * (logits - free.logits)
            # −∞ − −∞ at the denoiser's own suppressed ids would be NaN.
            logits = torch.where(logits == -torch.inf, logits, guided)
            if free.state is not None:
                state = GuidedState(prediction, free, self.guidance)
                prediction = replace(prediction, state=state)
        if self._suppressed is not None:
            logits = logits.index_fill(-1, self._suppressed, -torch.inf)
        return prediction if logits is prediction.logits else replace(prediction, logits=logits)
