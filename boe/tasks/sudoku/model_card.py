"""The embedded denoiser's model card: how it was made and how good it is."""

from __future__ import annotations

from pathlib import Path

import torch

from boe.decoding import TokensPerStep, generate
from boe.tasks.checkpoints import load_denoiser
from boe.tasks.sudoku.grid import CELLS, is_complete
from boe.tasks.sudoku.model import (
    MASK_ID,
    MASK_RATES,
    PAD_ID,
    TRAINING_GRID_SEED,
    TRAINING_GRIDS,
)
from boe.tasks.sudoku.puzzles import DIFFICULTIES
from boe.training import TrainConfig

EVALUATION_SEED = 1
_BATCH = 50


def measure(checkpoint: Path, count: int) -> dict[str, float]:
    """Accuracies of ``checkpoint`` at one token per step over ``count`` items each.

    Grids from an empty canvas are sampled at temperature 1, in two orders, as it decides
    much there; puzzles are solved in confidence order at temperature 0.
    """
    from boe.tasks.sudoku.task import SudokuTask

    denoiser = load_denoiser(checkpoint, MASK_ID, PAD_ID)
    measured = {}
    for order in ("entropy", "confidence"):
        sampled = generate(
            denoiser,
            torch.full((count, CELLS), MASK_ID),
            order,
            budget=TokensPerStep(1),
            temperature=1.0,
            seed=EVALUATION_SEED,
            batch_size=_BATCH,
        )
        valid = sum(is_complete(ids.tolist()) for ids in sampled.sequences)
        measured[f"valid grids sampled from an empty canvas, {order} order"] = valid / count
    for difficulty, clues in DIFFICULTIES.items():
        task = SudokuTask(difficulty)
        items = task.items(count, EVALUATION_SEED)
        result = generate(
            denoiser,
            [item.canvas for item in items],
            "confidence",
            budget=TokensPerStep(1),
            batch_size=_BATCH,
        )
        right = sum(task.judge(a, b).correct for a, b in zip(items, result.sequences, strict=True))
        measured[f"{difficulty} puzzles solved ({clues} clues)"] = right / count
    return measured


def write_model_card(
    output: Path, config: TrainConfig, items: int, measured: dict[str, float]
) -> None:
    """Write ``README.md`` beside the weights; ``items`` were measured of each kind."""
    rows = "\n".join(f"| {name} | {value:.1%} |" for name, value in measured.items())
    (output / "README.md").write_text(f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: fill-mask
---

# Sudoku masked diffusion denoiser

Predicts the masked cells of a Sudoku grid, written as 81 tokens in row-major order: `1`–`9`
for digits (ids 1–9), `[MASK]` (id 10) for empty cells. A pre-layer-norm transformer encoder
(`RobertaPreLayerNormForMaskedLM`): 8 layers, width 192, 6 heads, 3.6 M parameters.
Weights are stored in float16 and meant to be run in float32.

## Training

`boe train sudoku {config.options}`

- Data: {TRAINING_GRIDS:,} solved grids generated with seed {TRAINING_GRID_SEED}; every sample is a
  random symmetry (digit relabelling, band, stack, row and column permutations, transposition).
- Start: in each layer two heads look along rows, two along columns, two within boxes; position
  embeddings are sums of a row's, a column's and a box's vector; the rest is random.
- Objective: masked diffusion: a mask rate uniform on {MASK_RATES} per sample, and the mean
  cross-entropy of the masked cells.
- Optimiser: AdamW (0.9, 0.98), weight decay {config.weight_decay}, {config.warmup_steps} warm-up \
steps, cosine to zero,
  gradient norm at most {config.gradient_clip}.

## Accuracy

{items} items each, at one token per step. Grids are sampled at temperature 1; puzzles (seed \
{EVALUATION_SEED}, each with
exactly one solution unless called open) are solved in confidence order at temperature 0. No
evaluation grid is a symmetric form of a training grid.

| measure | value |
|---|---|
{rows}

## Limits

It knows nothing but Sudoku, and it makes mistakes: use a solver to solve Sudoku. It is here to
compare decoding orders.
""")
