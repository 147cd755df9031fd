"""What the block-causal models that run on transformers' classes share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from boe.denoisers.base import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from boe.denoisers.transformers_model import TransformersDenoiser


def block_length_of(config: dict[str, Any], default: int) -> int:
    """The config's ``block_size``, or what the family was published with.

    Raises:
        UnsupportedModel: it is not a positive integer.
    """
    length = config.get("block_size")
    length = default if length is None else length
    if not isinstance(length, int) or length < 1:
        raise UnsupportedModel(f"block_size in config.json must be at least 1, got {length!r}")
    return length


def block_causal_denoiser(
    model: PreTrainedModel, mask_id: int, suppressed_ids: tuple[int, ...], *, block_length: int
) -> TransformersDenoiser:
    """``model`` with attention in blocks of ``block_length``, and its mixtures runnable."""
    from boe.denoisers.transformers_model import TransformersDenoiser

    if next(model.parameters()).dtype == torch.float64:
        # transformers' default, grouped products, does not exist in float64.
        model.set_experts_implementation("eager")
    return TransformersDenoiser(
        model, mask_id, suppressed_ids=suppressed_ids, block_length=block_length
    )
