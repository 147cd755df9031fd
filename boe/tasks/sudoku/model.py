"""The embedded Sudoku denoiser: vocabulary, architecture, data and training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from boe.tasks.checkpoints import make_readable, save_weights
from boe.tasks.sudoku.grid import CELLS
from boe.tasks.sudoku.puzzles import augment, solved_grids, symmetry_signature
from boe.training import TrainConfig, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAD_ID = 0
MASK_ID = 10  # the ids 1-9 are the digits
VOCABULARY = ["[PAD]", *"123456789", "[MASK]"]

RECIPE = TrainConfig(steps=6000, batch_size=64, learning_rate=1.5e-3)
"""How the shipped checkpoint was trained, before its refinement."""

REFINEMENT_RATES = (0.4, 0.95)
"""Mask rates of the refinement: with fewer masks there is little left to learn, and with
nearly all cells masked nothing can be known."""

REFINEMENT_STATE_FILE = "refinement_state.pt"

TRAINING_GRIDS = 20_000
TRAINING_GRID_SEED = 0
SIGNATURES_FILE = "training_signatures.safetensors"
WEIGHTS = Path(__file__).parent / "weights"
"""The checkpoint shipped with the package, in transformers' format."""


def build_model(seed: int) -> PreTrainedModel:
    """An untrained pre-layer-norm transformer: 8 layers, width 192, 3.6 M parameters.

    Position embeddings start as the sum of a row, a column and a box vector, and weights
    at 1/√width: with transformers' default initialisation (0.02) training at this width
    stays at chance for hundreds of steps longer.
    """
    from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM

    config = RobertaPreLayerNormConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=192,
        num_hidden_layers=8,
        num_attention_heads=6,
        intermediate_size=768,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=CELLS + PAD_ID + 1,
        type_vocab_size=1,
        initializer_range=0.07,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RobertaPreLayerNormForMaskedLM(config)
        cells = torch.arange(CELLS)
        row, column = cells // 9, cells % 9
        box = row // 3 * 3 + column // 3
        positions = sum(torch.randn(9, config.hidden_size)[unit] for unit in (row, column, box))
        table = model.base_model.embeddings.position_embeddings.weight.data
        table[-CELLS:] = 0.05 * positions
    return model


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character: digits, and ``[MASK]`` for an empty cell."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", mask_token="[MASK]", model_max_length=CELLS
    )


def refinement_of(config: TrainConfig) -> TrainConfig:
    """The second stage of a training: shorter, at a lower rate, from random draws of its own."""
    return replace(
        config,
        steps=max(1, round(config.steps * 13 / 30)),
        learning_rate=config.learning_rate * 2 / 3,
        seed=config.seed + 1,
    )


def train_sudoku(
    config: TrainConfig,
    output: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    grids: int = TRAINING_GRIDS,
) -> None:
    """Train the embedded denoiser from random weights and save it, in float16, to ``output``.

    In two stages: at all mask rates by ``config``, then by :func:`refinement_of` it.
    ``on_step`` counts the steps of both.
    """
    base = solved_grids(grids, TRAINING_GRID_SEED)
    model = build_model(config.seed)
    behind_attention = model.base_model.encoder.layer[-1].attention.output

    def next_batch(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(base), (config.batch_size,), generator=generator)
        return augment(base[chosen], generator)

    train(model, next_batch, MASK_ID, config, output, on_step, behind_attention=behind_attention)
    train(
        model,
        next_batch,
        MASK_ID,
        refinement_of(config),
        output,
        lambda step, loss: on_step(config.steps + step, loss),
        rates=REFINEMENT_RATES,
        state_file=REFINEMENT_STATE_FILE,
        behind_attention=behind_attention,
    )
    save_weights(model, output)
    build_tokenizer().save_pretrained(output)
    signatures = [symmetry_signature(tuple(grid)) for grid in base.tolist()]
    save_file({"signatures": torch.tensor(signatures)}, output / SIGNATURES_FILE)
    make_readable(output / SIGNATURES_FILE)


def training_signatures(checkpoint: Path = WEIGHTS) -> frozenset[int]:
    """Symmetry signatures of the grids that a checkpoint was trained on."""
    return frozenset(load_file(checkpoint / SIGNATURES_FILE)["signatures"].tolist())
