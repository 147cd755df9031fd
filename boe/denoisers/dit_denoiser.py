"""MDLM, BD3-LM and SEDD as denoisers.

The networks give unnormalised log-probabilities of the clean token at masked positions:

- MDLM and BD3-LM (SUBS parameterisation): the mask's logit is −∞, and observed positions
  are copied, which the decoding loop does.
- SEDD: outputs are log-scores ln s_v = ln p(v | x) − ln(e^σ − 1) for the absorbing graph,
  so that softmax over the ids other than the mask gives p(v | x). The published scaling by
  −ln(e^σ − 1) − ln(V − 1) is the same for every id and drops out of it.

MDLM and BD3-LM are published with their time input set to zero. SEDD takes σ, and its
surrogate forward (docs/method.md) is run at the noise level that follows the step.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from boe.canvas import Canvas
from boe.denoisers.attention_denoiser import (
    AttentionDenoiser,
    HeadOutput,
    check_block_length,
    check_ids,
)
from boe.denoisers.attention_modes import AttentionMode
from boe.denoisers.base import DenoiserFacts, GradientRequest, Prediction, take_rows
from boe.denoisers.dit import DiT
from boe.denoisers.noise import NoiseRange


class DiTDenoiser(AttentionDenoiser):
    """A :class:`DiT` as a masked diffusion denoiser.

    The model is put into evaluation mode and its parameters are frozen.

    Args:
        model: the network.
        mask_id: id of the mask token; by default the last one.
        suppressed_ids: ids never to be written, besides the mask.
        noise: the range of σ of a time-conditioned model; ``None`` if time is zeroed.
        block_length: make attention block-causal in blocks of this many positions.

    Raises:
        ValueError: an id is outside the vocabulary.
    """

    def __init__(
        self,
        model: DiT,
        mask_id: int | None = None,
        *,
        suppressed_ids: tuple[int, ...] = (),
        noise: NoiseRange | None = None,
        block_length: int | None = None,
    ) -> None:
        check_block_length(block_length)
        vocabulary = model.config.vocab_size
        mask_id = vocabulary - 1 if mask_id is None else mask_id
        self.model = model.eval().requires_grad_(False)
        self.name = type(model).__name__
        self.noise = noise
        self.facts = DenoiserFacts(
            mask_id=mask_id,
            vocab_size=vocabulary,
            suppressed_ids=check_ids(vocabulary, mask_id, suppressed_ids),
            time_conditioned=noise is not None,
            max_length=model.config.length,
            block_length=block_length,
        )
        self._surrogate_sigma: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.embedding_table.device

    @property
    def embedding_table(self) -> Tensor:
        return self.model.vocab_embed.embedding

    @property
    def linear_head(self) -> nn.Linear:
        return self.model.output_layer.linear

    def embed(self, ids: Tensor) -> Tensor:
        return self.embedding_table[ids]

    def sigma_of(self, canvas: Canvas, revealed: Tensor | int = 0) -> Tensor:
        """σ (B,) of ``canvas`` once ``revealed`` of its masks are written; 0 without time."""
        if self.noise is None:
            return torch.zeros(canvas.batch, device=self.device)
        masked = (canvas.masked(self.facts.mask_id).sum(dim=1) - revealed).clamp_min(0)
        return self.noise.sigma_at(masked, torch.tensor(canvas.lengths, device=self.device))

    def for_surrogate(self, prediction: Prediction, request: GradientRequest) -> DiTDenoiser:
        """This denoiser with its time fixed at the noise level that follows the step."""
        if self.noise is None:
            return self
        revealed = 1 if request.revealed is None else request.revealed
        ahead = copy.copy(self)
        ahead._surrogate_sigma = self.sigma_of(prediction.canvas, revealed)
        return ahead

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
        if self._surrogate_sigma is not None:
            sigma = self._surrogate_sigma
        elif canvas is not None:
            sigma = self.sigma_of(canvas)
        elif self.noise is None:
            sigma = torch.zeros(embeds.shape[0], device=embeds.device)
        else:
            raise ValueError("a time-conditioned model needs the canvas to know its noise level")
        if position_ids is None:
            position_ids = torch.arange(embeds.shape[1], device=embeds.device)
            position_ids = position_ids.expand(embeds.shape[0], -1)
        padding = canvas.valid if canvas is not None and canvas.padded else None
        block_length = self.facts.block_length
        hidden = self.model(embeds, sigma, mode, position_ids, padding, block_length)
        picked = take_rows(hidden, head_rows)
        logits = self.linear_head(picked[:, :0] if skip_head else picked)
        return HeadOutput(logits, picked, hidden)
