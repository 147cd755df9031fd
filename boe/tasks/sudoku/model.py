"""The embedded Sudoku denoiser: vocabulary, architecture, data and training."""

from __future__ import annotations

import math
from collections.abc import Callable
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

RECIPE = TrainConfig(steps=2000, batch_size=64, learning_rate=1.5e-3)
"""How the shipped checkpoint was trained."""

MASK_RATES = (0.2, 0.95)
"""With fewer masks there is little left to learn, and with nearly all cells masked nothing can
be known."""

TRAINING_GRIDS = 20_000
TRAINING_GRID_SEED = 0
SIGNATURES_FILE = "training_signatures.safetensors"
WEIGHTS = Path(__file__).parent / "weights"
"""The checkpoint shipped with the package, in transformers' format."""


def build_model(seed: int) -> PreTrainedModel:
    """An untrained pre-layer-norm transformer: 8 layers, width 192, 3.6 M parameters.

    It starts with the rules' geometry, in place of finding it by training: a position's
    embedding is the sum of a vector for its row, its column and its box, and in every layer
    two heads look along rows, two along columns and two within boxes (:func:`_look_along`).
    Other weights start at 1/√width, those that end a sublayer at 1/√sublayers of that.
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
    cells = torch.arange(CELLS)
    row, column = cells // 9, cells % 9
    box = row // 3 * 3 + column // 3
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = RobertaPreLayerNormForMaskedLM(config)
        orthonormal = torch.linalg.qr(torch.randn(config.hidden_size, 27)).Q.T
        directions = orthonormal.view(3, 9, config.hidden_size)
        positions = sum(directions[k][unit] for k, unit in enumerate((row, column, box)))
        table = model.base_model.embeddings.position_embeddings.weight
        table[-CELLS:] = 0.7 * positions
        for layer in model.base_model.encoder.layer:
            looking = layer.attention.self
            for weight in (looking.query.weight, looking.key.weight):
                for head, rows in enumerate(weight.chunk(config.num_attention_heads)):
                    _look_along(rows, directions[head % 3])
            for end in (layer.attention.output.dense, layer.output.dense):
                end.weight /= math.sqrt(2 * config.num_hidden_layers)
    return model


def _look_along(weight: Tensor, directions: Tensor) -> None:
    """Let a head attend to cells of the same unit, in place.

    Args:
        weight: of the head's queries or keys, (32, D). On a fresh canvas the nine cells of a unit
            get two thirds of the attention; what is random beside them hardly counts.
        directions: orthonormal, of the nine units, (9, D).
    """
    weight *= 0.5
    weight[:9] = 0.77 * directions


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


def train_sudoku(
    config: TrainConfig,
    output: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    grids: int = TRAINING_GRIDS,
) -> None:
    """Train the embedded denoiser from :func:`build_model` and save it, in float16."""
    base = solved_grids(grids, TRAINING_GRID_SEED)
    model = build_model(config.seed)
    behind_attention = model.base_model.encoder.layer[-1].attention.output

    def next_batch(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(base), (config.batch_size,), generator=generator)
        return augment(base[chosen], generator)

    train(
        model,
        next_batch,
        MASK_ID,
        config,
        output,
        on_step,
        rates=MASK_RATES,
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
