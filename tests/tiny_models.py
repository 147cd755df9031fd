"""Tiny random transformers models of every architecture that the engines are tested on."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    EuroBertConfig,
    EuroBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
)

from boe.denoisers.transformers_model import TransformersDenoiser

MASK_ID = 3
FIRST_WORD = 4  # ids below are special in one architecture or another
VOCABULARY = 40
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
_MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

ARCHITECTURES = (
    "bert",
    "roberta",
    "roberta_pre_layer_norm",
    "distilbert",
    "modernbert",
    "eurobert",
    "albert",
    "electra",
)


def _untrained(name: str, layers: int) -> PreTrainedModel:
    shape = {**_SHAPE, "num_hidden_layers": layers}
    if name == "bert":
        return BertForMaskedLM(BertConfig(**shape))
    if name == "bert_untied":
        return BertForMaskedLM(BertConfig(tie_word_embeddings=False, **shape))
    if name == "roberta":
        return RobertaForMaskedLM(RobertaConfig(pad_token_id=1, **shape))
    if name == "roberta_pre_layer_norm":
        return RobertaPreLayerNormForMaskedLM(RobertaPreLayerNormConfig(pad_token_id=0, **shape))
    if name == "distilbert":
        config = DistilBertConfig(
            vocab_size=VOCABULARY,
            dim=32,
            n_layers=layers,
            n_heads=4,
            hidden_dim=48,
            max_position_embeddings=40,
        )
        return DistilBertForMaskedLM(config)
    if name == "modernbert":
        # Every second layer sees four positions to either side.
        config = ModernBertConfig(
            local_attention=8,
            global_attn_every_n_layers=2,
            cls_token_id=1,
            sep_token_id=2,
            **_MARKS,
            **shape,
        )
        return ModernBertForMaskedLM(config)
    if name == "eurobert":
        return EuroBertForMaskedLM(EuroBertConfig(num_key_value_heads=2, **_MARKS, **shape))
    if name == "albert":
        return AlbertForMaskedLM(AlbertConfig(embedding_size=16, **shape))
    return ElectraForMaskedLM(ElectraConfig(embedding_size=16, **shape))


def randomise(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """``model`` in float64 and evaluation mode, with matrices large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.25, generator=generator)
        elif not bool((parameter == 1).all()):  # biases, but not norms' scales
            parameter.normal_(0.0, 0.1, generator=generator)
    return model


@cache
def _template(name: str, layers: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        return randomise(_untrained(name, layers))


def tiny_model(name: str, layers: int = 3) -> PreTrainedModel:
    """A model of its own: what is done to it reaches no other test."""
    return copy.deepcopy(_template(name, layers))


def tiny_denoiser(name: str, layers: int = 3, **options: int) -> TransformersDenoiser:
    return TransformersDenoiser(tiny_model(name, layers), MASK_ID, **options)


def random_words(length: int, masks: list[int], seed: int = 0) -> Tensor:
    """int64 (length,) of words, with the mask token at ``masks``."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST_WORD, VOCABULARY, (length,), generator=generator)
    ids[masks] = MASK_ID
    return ids


def tolerance_of(name: str) -> float:
    """Relative rounding of a float64 forward and backward: EuroBERT's norms are float32."""
    return 2e-4 if name == "eurobert" else 1e-9
