"""A tiny BERT and a tiny EuroBERT with word tokenizers, as ``save_pretrained`` saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from published_checkpoints import save_words
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    EuroBertConfig,
    EuroBertForMaskedLM,
    PreTrainedTokenizerFast,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "cat", "sat", "on", "a", "mat", "dog", "ran", "to", "red", "house", "big")


def save_tiny_bert(folder: Path, *, mask_token: bool = True, spare_rows: int = 2) -> Path:
    """Writes model and tokenizer; the model has ``spare_rows`` rows that no token names."""
    vocabulary = {token: k for k, token in enumerate((*SPECIAL, *WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        **({"mask_token": "[MASK]"} if mask_token else {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForMaskedLM(
            BertConfig(
                vocab_size=len(vocabulary) + spare_rows,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                max_position_embeddings=40,
                initializer_range=0.3,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_eurobert(folder: Path) -> Path:
    """Writes model and tokenizer, in float64; transformers has a plan to share it out."""
    config = EuroBertConfig(
        vocab_size=44,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
        initializer_range=0.3,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 38),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        EuroBertForMaskedLM(config).double().save_pretrained(folder)
    save_words(folder, mask="[MASK]")
    return folder
