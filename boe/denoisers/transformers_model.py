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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from boe.canvas import Canvas
from boe.denoisers.attention_denoiser import (
    AttentionDenoiser,
    HeadOutput,
    check_block_length,
    check_ids,
    check_shift,
)
from boe.denoisers.attention_modes import ATTENTION_NAME, AttentionMode, register_attention
from boe.denoisers.base import DenoiserFacts, UnsupportedModel, take_rows
from boe.denoisers.probing import Capabilities, probe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersDenoiser(AttentionDenoiser):
    """A transformers model as a masked diffusion denoiser.

    The model is put into evaluation mode, its parameters are frozen and its attention is
    set to ours. It is not changed otherwise, and stays usable.

    Args:
        model: a model whose output has ``logits``, such as a ``...ForMaskedLM``.
        mask_id: id of the mask token.
        suppressed_ids: ids never to be written, besides the mask.
        logits_shift: −1 if row j − 1 of the logits predicts position j.
        block_length: make attention block-causal in blocks of this many positions.

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
        block_length: int | None = None,
    ) -> None:
        self.embedding: nn.Embedding = model.get_input_embeddings()
        self.head: Any = model.get_output_embeddings()
        if self.head is None:
            raise UnsupportedModel(f"{type(model).__name__} has no output embeddings")
        vocabulary = self.embedding.weight.shape[0]
        suppressed_ids = check_ids(vocabulary, mask_id, suppressed_ids)
        check_shift(logits_shift)
        check_block_length(block_length)
        register_attention()
        model.eval().requires_grad_(False)
        try:
            model.set_attn_implementation(ATTENTION_NAME)
        except ValueError as error:
            raise UnsupportedModel(
                f"{type(model).__name__} does not accept an attention implementation: {error}"
            ) from error
        self.model = model
        self.name = type(model).__name__
        self.block_length = block_length
        self.capabilities = Capabilities()
        self.capabilities = probe(self, mask_id)
        self.replay_refusal = self.capabilities.replay_refusal
        longest = getattr(model.config, "max_position_embeddings", None)
        self.facts = DenoiserFacts(
            mask_id=mask_id,
            vocab_size=vocabulary,
            suppressed_ids=suppressed_ids,
            logits_shift=logits_shift,
            max_length=None if longest is None else longest - self.capabilities.position_offset,
            block_length=block_length,
        )

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def embedding_table(self) -> Tensor:
        scale = self.capabilities.embedding_scale
        return self.embedding.weight if scale == 1.0 else self.embedding.weight * scale

    @property
    def linear_head(self) -> nn.Linear | None:
        return self.head if self.capabilities.linear_head else None

    def embed(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)

    def attention_options(self, mode: AttentionMode) -> dict[str, Any]:
        """The keywords that carry our attention through the model's forward."""
        options: dict[str, Any] = {"boe_mode": mode}
        if self.block_length is not None:
            options["boe_block_size"] = self.block_length
        return options

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
        if position_ids is None:
            position_ids = torch.arange(embeds.shape[1], device=embeds.device)
            position_ids = position_ids.expand(embeds.shape[0], -1)
        inputs: dict[str, Any] = {
            "inputs_embeds": embeds,
            "position_ids": position_ids + self.capabilities.position_offset,
            **self.attention_options(mode),
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
