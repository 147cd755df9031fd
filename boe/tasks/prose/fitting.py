"""Training of the denoiser and the scorer of the task ``prose``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from boe.tasks.checkpoints import make_readable, save_weights
from boe.tasks.prose.corpus import (
    MASK_ID,
    build_tokenizer,
    encode,
    random_windows,
    read_corpus,
    windows,
)
from boe.tasks.prose.model import build_denoiser
from boe.tasks.prose.scorer import build_scorer, next_token_nats
from boe.tasks.text.model import ModelShape
from boe.training import TrainConfig, fit, train

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LENGTH = 64
"""Tokens of a canvas."""

DENOISER_SHAPE = ModelShape(layers=4, width=128)
DENOISER_RECIPE = TrainConfig(steps=1500, batch_size=64, learning_rate=2e-3)
SCORER_SHAPE = ModelShape(layers=3, width=160)
SCORER_RECIPE = TrainConfig(steps=700, batch_size=64, learning_rate=2e-3, weight_decay=0.1)

SCORER_FOLDER = "scorer"
TEXTS_FILE = "texts.safetensors"

OnStep = Callable[[int, float], None]


def _ignore(step: int, loss: float) -> None:
    pass


def train_prose(
    config: TrainConfig,
    scorer_config: TrainConfig,
    corpus: Path,
    output: Path,
    on_step: OnStep = _ignore,
) -> None:
    """Train denoiser and scorer, one after the other, and save all that the task needs.

    Args:
        corpus: the archive that :func:`boe.tasks.prose.corpus.read_corpus` reads.
        on_step: called with the number of finished steps, the scorer's after the
            denoiser's, and the last loss.

    Raises:
        FileNotFoundError: ``corpus`` does not exist.
        ValueError: it is another file, or ``output`` holds another run's state.
    """
    train_prose_denoiser(config, corpus, output, on_step)
    train_prose_scorer(
        scorer_config, corpus, output, lambda done, loss: on_step(config.steps + done, loss)
    )


def train_prose_denoiser(
    config: TrainConfig, corpus: Path, output: Path, on_step: OnStep = _ignore
) -> None:
    """Train the denoiser from random weights; save it with tokenizer, validation and test text.

    Args:
        corpus: the archive that :func:`boe.tasks.prose.corpus.read_corpus` reads.

    Raises:
        FileNotFoundError: ``corpus`` does not exist.
        ValueError: it is another file, or ``output`` holds another run's state.
    """
    parts = read_corpus(corpus)
    tokenizer = build_tokenizer(parts["denoiser"])
    ids = encode(tokenizer, parts["denoiser"])
    model = build_denoiser(DENOISER_SHAPE, LENGTH, config.seed)

    def next_batch(generator: torch.Generator) -> Tensor:
        return random_windows(ids, LENGTH, config.batch_size, generator)

    train(model, next_batch, MASK_ID, config, output, on_step)
    save_weights(model, output)
    save_tokenizer(tokenizer, output)
    texts = {
        part: windows(encode(tokenizer, parts[part]), LENGTH).to(torch.int16)
        for part in ("validation", "test")
    }
    save_file(texts, output / TEXTS_FILE)
    make_readable(output / TEXTS_FILE)


def train_prose_scorer(
    config: TrainConfig, corpus: Path, output: Path, on_step: OnStep = _ignore
) -> None:
    """Train the scorer from random weights and save it to the folder ``scorer`` of ``output``.

    Raises:
        FileNotFoundError: ``corpus`` does not exist.
        ValueError: it is another file, or the folder holds another run's state.
    """
    parts = read_corpus(corpus)
    ids = encode(build_tokenizer(parts["denoiser"]), parts["scorer"])
    model = build_scorer(SCORER_SHAPE, LENGTH, config.seed)

    def next_loss(generator: torch.Generator) -> Tensor:
        batch = random_windows(ids, LENGTH, config.batch_size, generator)
        return next_token_nats(model, batch)[0].mean()

    fit(model, next_loss, config, output / SCORER_FOLDER, on_step)
    save_weights(model, output / SCORER_FOLDER)


def save_tokenizer(tokenizer: Tokenizer, output: Path) -> None:
    """Write ``tokenizer`` so that transformers reads it too."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(output)


def scorer_recipe(seed: int) -> TrainConfig:
    """The scorer's recipe with the seed of the denoiser's."""
    return replace(SCORER_RECIPE, seed=seed)
