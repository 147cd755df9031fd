"""The model card of a text task's denoiser: how it was made and how good it is."""

from __future__ import annotations

import inspect
from pathlib import Path

from boe.decoding import TokensPerStep, generate
from boe.tasks.checkpoints import load_denoiser
from boe.tasks.text.task import CharacterTask
from boe.tasks.text.vocabulary import MASK_ID, PAD_ID
from boe.training import TrainConfig

EVALUATION_SEED = 1
TOKENS_PER_STEP = (1, 2, 3, 4, 6)
_BATCH = 64


def measure_text_task(task: type[CharacterTask], checkpoint: Path, count: int) -> dict[str, float]:
    """Share of right answers to ``count`` test items of every difficulty.

    Decoded in confidence order at temperature 0, at several numbers of tokens per step.
    """
    denoiser = load_denoiser(checkpoint, MASK_ID, PAD_ID)
    measured = {}
    for name in task.difficulties:
        setting = task(name)
        items = setting.items(count, EVALUATION_SEED)
        for tokens in TOKENS_PER_STEP:
            result = generate(
                denoiser,
                [item.canvas for item in items],
                "confidence",
                budget=TokensPerStep(tokens),
                batch_size=_BATCH,
            )
            right = sum(
                setting.judge(item, ids).correct
                for item, ids in zip(items, result.sequences, strict=True)
            )
            measured[f"{name}, {tokens} per step"] = right / count
    return measured


def write_text_model_card(
    task: type[CharacterTask],
    output: Path,
    config: TrainConfig,
    count: int,
    measured: dict[str, float],
) -> None:
    """Write ``README.md`` beside the weights: ``measured`` over ``count`` items each."""
    item = task(next(iter(task.difficulties))).items(1, EVALUATION_SEED)[0]
    parameters = sum(p.numel() for p in load_denoiser(output, MASK_ID, PAD_ID).model.parameters())
    header = " | ".join(f"{tokens} per step" for tokens in TOKENS_PER_STEP)
    rows = "\n".join(
        f"| {name} | `{task.difficulties[name]}` | "
        + " | ".join(f"{measured[f'{name}, {tokens} per step']:.1%}" for tokens in TOKENS_PER_STEP)
        + " |"
        for name in task.difficulties
    )
    answers = "the answer"
    if task.texts > 1:
        answers = f"the answers of all {task.texts} problems of a canvas, each a sample,"
    command = f"boe train {task.name} {config.options}"
    (output / "README.md").write_text(f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: fill-mask
---

# Masked diffusion denoiser of the task `{task.name}`

{inspect.cleandoc(task.__doc__ or "")}

An item's prompt and reference answer: `{item.data.prompt}` and `{item.data.reference}`.

One token per character; `tokenizer.json` has the vocabulary, which all text tasks share. A
pre-layer-norm transformer encoder (`RobertaPreLayerNormForMaskedLM`): {task.shape.layers} layers,
width {task.shape.width}, {task.shape.heads} heads, {parameters / 1e6:.2f} M parameters, stored in
float16 and meant to be run in float32.

## Training

`{command}`

- Data: problems drawn without end from the training split, in equal shares of
  {", ".join(task.training_mix)}. A hash of the problem decides its split, so no validation or test
  problem was ever trained on.
- Objective: masked diffusion evidence lower bound with the linear schedule, on {answers} only: a
  mask rate uniform on (0, 1) per sample, and the mean cross-entropy of the masked characters.
- Optimiser: AdamW (0.9, 0.98), weight decay {config.weight_decay}, {config.warmup_steps} warm-up
  steps, cosine to zero, gradient norm at most {config.gradient_clip}.

## Accuracy

Share of right answers to {count} test items of each difficulty, seed {EVALUATION_SEED}, in
confidence order at temperature 0:

| difficulty | settings | {header} |
|---|---|{"---|" * len(TOKENS_PER_STEP)}
{rows}

The training command measures this at its end. For the shipped weights, each row is also what

`boe compare --task {task.name} --difficulty NAME --seed {EVALUATION_SEED} --items {count} \
--samplers confidence --tokens-per-step {",".join(map(str, TOKENS_PER_STEP))}`

measures.

## Limits

It knows nothing but its task, and it makes mistakes. It is here to compare decoding orders.
""")
