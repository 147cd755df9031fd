"""The architecture of the denoiser of the task ``prose``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from boe.tasks.prose.corpus import PAD_ID, VOCABULARY
from boe.tasks.text.model import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOCAL_WINDOW = 16


def build_denoiser(shape: ModelShape, length: int, seed: int) -> PreTrainedModel:
    """An untrained ModernBERT for texts of at most ``length`` tokens.

    Rotary positions, and a first half of layers that see eight tokens to either side: with
    learned absolute positions (the other tasks' model) the loss stayed at that of single
    tokens' frequencies for hundreds of steps.
    """
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    local = shape.layers // 2
    rotary = {"rope_type": "default", "rope_theta": 10_000.0}
    config = ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=shape.width * 8 // 3,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=length,
        initializer_range=shape.width**-0.5,
        layer_types=["sliding_attention"] * local + ["full_attention"] * (shape.layers - local),
        local_attention=_LOCAL_WINDOW,
        rope_parameters={"full_attention": rotary, "sliding_attention": dict(rotary)},
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=None,
        cls_token_id=None,
        sep_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ModernBertForMaskedLM(config)
