"""The embedded denoisers of text tasks: their architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from boe.tasks.text.vocabulary import PAD_ID, TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelShape:
    """Size of a transformer encoder; the feed-forward is four times as wide as the rest."""

    layers: int
    width: int
    heads: int = 4

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, got {self.width} and {self.heads} heads"
            )


def build_model(
    shape: ModelShape, length: int, position_groups: list[list[int]], seed: int
) -> PreTrainedModel:
    """An untrained pre-layer-norm transformer encoder for texts of at most ``length`` tokens.

    Position embeddings start as sums of one vector per group, and weights at 1/√width, as
    in the Sudoku denoiser (:func:`boe.tasks.sudoku.model.build_model`) and for its reason.

    Args:
        position_groups: per feature, the group of each of the ``length`` positions.
    """
    from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM

    config = RobertaPreLayerNormConfig(
        vocab_size=len(TOKENS),
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=length + PAD_ID + 1,
        type_vocab_size=1,
        initializer_range=shape.width**-0.5,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RobertaPreLayerNormForMaskedLM(config)
        table = model.base_model.embeddings.position_embeddings.weight.data
        table[-length:] = 0.05 * sum(
            torch.randn(max(groups) + 1, shape.width)[groups] for groups in position_groups
        )
    return model
