"""Training of a text task's embedded denoiser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from boe.tasks.checkpoints import save_weights
from boe.tasks.text.model import build_model
from boe.tasks.text.task import CharacterTask
from boe.tasks.text.vocabulary import MASK_ID, build_tokenizer
from boe.training import TrainConfig, train


def train_text_task(
    task: type[CharacterTask],
    config: TrainConfig,
    output: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train the embedded denoiser of ``task`` from random weights and save it to ``output``.

    Every batch is drawn anew from the training split; only answers are masked, of solved
    examples too.
    """
    settings = [task(difficulty) for difficulty in task.training_mix]
    length = len(task.template)
    model = build_model(task.shape, length, task.position_groups(), config.seed)
    shares = [(config.batch_size + k) // len(settings) for k in reversed(range(len(settings)))]

    def next_batch(generator: torch.Generator) -> Tensor:
        batch = [
            setting.render(setting.problems(share, generator, "train", chunk=share + share // 2))
            for setting, share in zip(settings, shares, strict=True)
            if share
        ]
        # The mask rate rises along the batch, so difficulties must not.
        ids = torch.cat(batch)
        return ids[torch.randperm(len(ids), generator=generator)]

    train(
        model,
        next_batch,
        MASK_ID,
        config,
        output,
        on_step,
        maskable=task.fill_mask()[-(length // task.texts) :],
        texts=task.texts,
        behind_attention=model.base_model.encoder.layer[-1].attention.output,
    )
    save_weights(model, output)
    build_tokenizer(length).save_pretrained(output)
