"""Prompts with places to fill in."""

from __future__ import annotations

import torch
from torch import Tensor

from boe.denoisers.loading import LoadedModel


def prompt_ids(loaded: LoadedModel, prompt: str, length: int) -> Tensor:
    """Ids of a prompt with ``length`` masks after it, int64 (L,).

    Raises:
        ValueError: there is nothing to fill in.
    """
    tokenizer, mask_id = loaded.tokenizer, loaded.denoiser.facts.mask_id
    ids: Tensor = tokenizer(prompt, return_tensors="pt").input_ids[0]
    if length:
        # Appended masks belong before a closing special token such as [SEP].
        closing = len(ids) and int(ids[-1]) in set(tokenizer.all_special_ids) - {mask_id}
        cut = len(ids) - 1 if closing else len(ids)
        ids = torch.cat([ids[:cut], torch.full((length,), mask_id), ids[cut:]])
    if not bool((ids == mask_id).any()):
        raise ValueError(
            f"the prompt holds no {tokenizer.mask_token} and --length is 0: nothing to fill in"
        )
    return ids
