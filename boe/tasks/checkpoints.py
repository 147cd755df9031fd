"""Storage of the embedded denoisers: weights in float16, computing in float32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from boe.denoisers.transformers_model import TransformersDenoiser

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS_FILE = "model.safetensors"


def save_weights(model: PreTrainedModel, output: Path) -> None:
    """Write ``model``, whose weights become float16, in transformers' format."""
    model.to(torch.float16).save_pretrained(output)
    make_readable(output / WEIGHTS_FILE)


def make_readable(path: Path) -> None:
    """Let everyone read a file of safetensors, which makes them for their owner only."""
    path.chmod(0o644)


def load_denoiser(checkpoint: Path, mask_id: int, pad_id: int) -> TransformersDenoiser:
    """The denoiser of a task from ``checkpoint``, computing in float32.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    from transformers import AutoModelForMaskedLM

    if not (checkpoint / WEIGHTS_FILE).exists():
        raise FileNotFoundError(f"{checkpoint} holds no {WEIGHTS_FILE}: train it first")
    model = AutoModelForMaskedLM.from_pretrained(checkpoint, dtype=torch.float32)
    return TransformersDenoiser(model, mask_id, suppressed_ids=(pad_id,))
