"""Partly masked canvases to measure on: states of real decodes, or masked text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from boe.decoding import TokensPerStep, generate
from boe.denoisers.base import Denoiser
from boe.samplers.base import share_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "a"


def decoded_states(
    denoiser: Denoiser,
    canvases: Sequence[Tensor],
    fraction: float,
    order: str = "confidence",
    seed: int = 0,
) -> list[Tensor]:
    """Each canvas as it stands when ⌈``fraction`` · n⌉ of its n masks are left, int64 (L,).

    Decoded one token a step, so these are canvases that samplers meet, their mistakes
    included.

    Args:
        order: the sampler that decodes.
    """
    _check_fraction(fraction)
    mask_id = denoiser.facts.mask_id
    result = generate(
        denoiser,
        [canvas.to(denoiser.device) for canvas in canvases],
        order,
        budget=TokensPerStep(1),
        seed=seed,
        trajectory=True,
    )
    states = []
    for canvas, item in zip(canvases, result.items, strict=True):
        state = canvas.clone()
        masks = int((canvas == mask_id).sum())
        wanted = int(share_of(torch.tensor(masks), fraction))
        for step in item.trajectory or []:
            if int((state == mask_id).sum()) <= wanted:
                break
            state[step.revealed] = step.tokens
            state[step.remasked] = mask_id
        states.append(state)
    return states


def masked_text(
    tokenizer: PreTrainedTokenizerBase,
    mask_id: int,
    text: str,
    fraction: float,
    count: int,
    length: int,
    seed: int = 0,
) -> list[Tensor]:
    """Windows of ``text`` with ⌈``fraction`` · n⌉ of their n words' ids masked, int64 (L,).

    Args:
        count: how many windows, evenly spread over the text.
        length: L, with the special tokens that the tokenizer puts around a text.

    Raises:
        ValueError: the text is too short.
    """
    _check_fraction(fraction)
    before, after = _special_ids(tokenizer)
    inner = length - len(before) - len(after)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if inner < 2 or len(ids) < inner:
        raise ValueError(
            f"text must have at least {max(inner, 2)} tokens for canvases of {length}, "
            f"got {len(ids)}"
        )
    generator = torch.Generator().manual_seed(seed)
    last = len(ids) - inner
    canvases = []
    for window in range(count):
        start = window * last // max(1, count - 1)
        words = torch.tensor(ids[start : start + inner])
        masked = int(share_of(torch.tensor(inner), fraction))
        words[torch.randperm(inner, generator=generator)[:masked]] = mask_id
        canvases.append(torch.cat([torch.tensor(before), words, torch.tensor(after)]).long())
    return canvases


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    bare = list(tokenizer(_PROBE, add_special_tokens=False).input_ids)
    dressed = list(tokenizer(_PROBE).input_ids)
    for start in range(len(dressed) - len(bare) + 1):
        if dressed[start : start + len(bare)] == bare:
            return dressed[:start], dressed[start + len(bare) :]
    raise ValueError("the tokenizer changes a text when it adds special tokens to it")


def _check_fraction(fraction: float) -> None:
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
