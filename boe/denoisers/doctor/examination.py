"""Examining a checkpoint directory: is it whole, is it understood, does it behave?

Each check yields a :class:`Finding` with a verdict and, where something is wrong, what to
do about it. Checks that need an earlier one to have passed are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from boe.denoisers.attention_denoiser import AttentionDenoiser
from boe.denoisers.base import UnsupportedModel
from boe.denoisers.checkpoint import Checkpoint, PickledWeights, first_line
from boe.denoisers.doctor.behaviour import (
    check_forward,
    check_gradients,
    check_shift,
    check_step,
    check_tied_head,
)
from boe.denoisers.doctor.finding import Finding
from boe.denoisers.doctor.stored import check_files, check_ids, check_values, check_vocabulary
from boe.denoisers.loading import (
    build_published,
    choose_mask_id,
    load_model,
    load_tokenizer,
    unnamed_ids,
)
from boe.denoisers.published import Blueprint, blueprint_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = (
    "The sun rose over the hills, and the people of the village went to work in the fields. "
    "In the afternoon it began to rain, so they came home early and sat by the fire. "
    "One of them told a story about a king who had three sons."
)


@dataclass(frozen=True)
class Examination:
    """What to examine, and how.

    Attributes:
        folder: the checkpoint directory.
        device, dtype, mask_id, tokenizer, allow_pickle, trust_remote_code: as in
            :func:`boe.denoisers.loading.load_model`.
        shapes: (batch, length) of the canvases on which a step is timed.
        text: what the check of the logits' shift has the model fill in.
    """

    folder: Path
    device: str = "cpu"
    dtype: torch.dtype | None = None
    mask_id: int | None = None
    tokenizer: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    shapes: tuple[tuple[int, int], ...] = ((1, 64),)
    text: str = TEXT

    def __post_init__(self) -> None:
        for batch, length in self.shapes:
            if batch < 1 or length < 4:
                raise ValueError(f"shapes must be at least 1x4, got {batch}x{length}")

    def findings(self) -> Iterator[Finding]:
        """Every check in turn, until one fails that the next ones need."""
        try:
            checkpoint = Checkpoint.open(self.folder, allow_pickle=self.allow_pickle)
        except PickledWeights as error:
            advice = "if you trust its source, pass --allow-pickle or convert it once"
            yield Finding("files", "failed", str(error), advice)
            return
        except FileNotFoundError as error:
            yield Finding("files", "failed", str(error), "copy the whole checkpoint again")
            return
        yield check_files(checkpoint)
        try:
            blueprint = blueprint_of(checkpoint.config)
        except UnsupportedModel as error:
            yield Finding("format", "failed", str(error), "this variant needs its own code")
            return
        if blueprint is None:
            yield from self._examine_foreign(checkpoint)
        else:
            yield from self._examine_published(checkpoint, blueprint)

    def _examine_published(self, checkpoint: Checkpoint, blueprint: Blueprint) -> Iterator[Finding]:
        blocks = blueprint.block_length
        seen = "" if blocks is None else f", block-causal in blocks of {blocks}"
        yield Finding("format", "ok", f"{blueprint.format}, built without code of its own{seen}")
        report = blueprint.keys.compare(checkpoint, blueprint.build())
        if not report.fits:
            advice = "the config does not belong to these weights, or the download is incomplete"
            yield Finding("weights", "failed", str(report), advice)
            return
        yield Finding("weights", "ok", f"all {len(blueprint.keys)} names and shapes fit")
        values = check_values(checkpoint)
        yield values
        if values.verdict == "failed":
            return
        words = None
        try:
            words = load_tokenizer(self.folder, blueprint, self.tokenizer)
        except FileNotFoundError as error:
            yield Finding("vocabulary", "unknown", str(error), "give --tokenizer")
        if words is not None:
            yield check_vocabulary(words, blueprint.vocab_size)
        try:
            mask_id = choose_mask_id(blueprint, words, self.mask_id, self.folder)
        except UnsupportedModel as error:
            yield Finding("ids", "failed", str(error), "give --mask-id")
            return
        yield check_ids(mask_id, checkpoint.config, words, blueprint.vocab_size)
        unnamed = () if words is None else unnamed_ids(blueprint, words)
        try:
            denoiser = build_published(
                checkpoint, blueprint, mask_id, unnamed, device=self.device, dtype=self.dtype
            )
        except (FileNotFoundError, ValueError, torch.OutOfMemoryError) as error:
            yield Finding("loading", "failed", first_line(error), _loading_advice(error))
            return
        yield check_tied_head(denoiser, blueprint.ties_head)
        yield from self._behaviour(denoiser, words)

    def _examine_foreign(self, checkpoint: Checkpoint) -> Iterator[Finding]:
        values = check_values(checkpoint)
        yield values
        if values.verdict == "failed":
            return
        try:
            loaded = load_model(
                self.folder,
                device=self.device,
                dtype=self.dtype,
                mask_id=self.mask_id,
                tokenizer=self.tokenizer,
                allow_pickle=self.allow_pickle,
                trust_remote_code=self.trust_remote_code,
            )
        except (FileNotFoundError, ValueError, torch.OutOfMemoryError) as error:
            yield Finding("format", "failed", first_line(error), _loading_advice(error))
            return
        denoiser, facts = loaded.denoiser, loaded.denoiser.facts
        kind = checkpoint.config.get("model_type", "unknown")
        yield Finding("format", "ok", f"{kind}, run by {denoiser.name} ({_engines(denoiser)})")
        yield check_vocabulary(loaded.tokenizer, facts.vocab_size)
        yield check_ids(facts.mask_id, checkpoint.config, loaded.tokenizer, facts.vocab_size)
        yield check_tied_head(denoiser, checkpoint.config.get("tie_word_embeddings"))
        yield from self._behaviour(denoiser, loaded.tokenizer)

    def _behaviour(
        self, denoiser: AttentionDenoiser, words: PreTrainedTokenizerBase | None
    ) -> Iterator[Finding]:
        forward = check_forward(denoiser)
        yield forward
        if forward.verdict == "failed":
            return
        yield check_shift(denoiser, words, self.text)
        yield check_gradients(denoiser)
        for batch, length in self.shapes:
            yield check_step(denoiser, batch, length)


def _engines(denoiser: AttentionDenoiser) -> str:
    return "late, dense" if denoiser.replay_refusal else "replay, late, dense"


def _loading_advice(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "a larger device, or --dtype bfloat16"
    return "see docs/denoisers.md for what can be loaded"
