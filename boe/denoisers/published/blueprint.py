"""What a published checkpoint's config says must be built, and how it is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from boe.denoisers.attention_denoiser import AttentionDenoiser
from boe.denoisers.base import UnsupportedModel
from boe.denoisers.weights import KeyMap

FORMAT_KEY = "boe_format"
"""Names the published format in the config of a converted checkpoint."""


@dataclass(frozen=True)
class Blueprint:
    """How to make a denoiser from a checkpoint.

    Attributes:
        format: a name among ``boe.denoisers.published.FORMATS``.
        vocab_size: rows of the embedding table.
        build: the model without memory (on the meta device).
        keys: the checkpoint's names, and the parameters that they become.
        denoiser: makes the denoiser from the filled model, the mask id and the ids never
            to be written; block-causal ones take ``block_length`` too.
        mask_id: id of the mask token, or ``None`` if the config does not say.
        default_mask_id: what it is where neither config nor tokenizer say.
        tokenizer: transformers' class for the checkpoint's tokenizer files, or ``None`` if
            such checkpoints are published without.
        native_config: the config under which :func:`boe.denoisers.conversion.convert`
            saves the model.
        ties_head: the head is the embedding table.
        block_length: of block-causal attention; ``None`` if a position sees all others.
    """

    format: str
    vocab_size: int
    build: Callable[[], nn.Module]
    keys: KeyMap
    denoiser: Callable[..., AttentionDenoiser]
    mask_id: int | None
    default_mask_id: int | None = None
    native_config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = "PreTrainedTokenizerFast"
    ties_head: bool = False
    block_length: int | None = None


def required(config: dict[str, Any], key: str, format: str) -> Any:
    """``config[key]``; an :class:`UnsupportedModel` that names it where it is absent."""
    if config.get(key) is None:
        raise UnsupportedModel(f"config.json of a {format} checkpoint must hold {key!r}")
    return config[key]


def refuse_variants(config: dict[str, Any], expected: dict[str, Any], format: str) -> None:
    """Raise for a switch whose setting would need other computations than ours.

    ``expected`` holds the one setting that is supported of each switch; a switch that the
    config leaves out has it.
    """
    for key, value in expected.items():
        got = config.get(key, value)
        if got != value:
            raise UnsupportedModel(
                f"this {format} checkpoint has {key} = {got!r}, which is not supported; "
                f"published ones have {value!r}"
            )
