"""Finding out what a transformers model can do by running it on a small canvas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from boe.denoisers.attention_modes import ATTENTION_NAME, Plain, Recording, Replaying
from boe.denoisers.base import UnsupportedModel, take_rows

if TYPE_CHECKING:
    from boe.denoisers.transformers_model import TransformersDenoiser

_LENGTH = 6
_REPLAYED = (1, 3, 4)


@dataclass(frozen=True)
class Capabilities:
    """What the probe found.

    Attributes:
        position_offset: added to 0-based positions (RoBERTa's start after its padding id).
        embedding_scale: factor between the embedding table and the model's embeddings.
        linear_head: logits are exactly a linear map of the head's input.
        replay_refusal: why the model cannot be run on a subset of rows, or ``None``.
    """

    position_offset: int = 0
    embedding_scale: float = 1.0
    linear_head: bool = False
    replay_refusal: str | None = None


@torch.no_grad()
def probe(denoiser: TransformersDenoiser, mask_id: int) -> Capabilities:
    """Run ``denoiser.model`` on a few tokens and compare its ways of being called.

    Sets ``denoiser.capabilities`` on the way, as its own runs depend on them.

    Raises:
        UnsupportedModel: logits are NaN, our attention is not called, or running from
            embeddings does not reproduce running from ids.
    """
    name = type(denoiser.model).__name__
    ids = _probe_ids(denoiser, mask_id)
    recording = Recording()
    try:
        expected = denoiser.model(input_ids=ids, **denoiser.attention_options(recording)).logits
    except TypeError as error:
        raise UnsupportedModel(f"{name} does not take extra forward arguments: {error}") from error
    if bool(expected.isnan().any()):
        raise UnsupportedModel(
            f"the logits of {name} are NaN for a few tokens: weights are damaged, or "
            f"{str(expected.dtype).removeprefix('torch.')} does not hold what the model computes "
            "(`boe doctor` names such weights)"
        )
    if not recording.layers:
        raise UnsupportedModel(
            f"{name} never called {ATTENTION_NAME!r}: its attention does not go through "
            "transformers' attention interface, or it drops forward arguments on the way"
        )
    embeds = denoiser.embedding(ids)
    scale = float(getattr(denoiser.embedding, "embed_scale", 1.0))
    if not agree(denoiser.embedding.weight[ids] * scale, embeds):
        raise UnsupportedModel(f"the input embeddings of {name} are not a lookup in a table")
    offset = _position_offset(denoiser, embeds, expected, scale)
    denoiser.capabilities = Capabilities(offset, scale)
    rows = torch.tensor([_REPLAYED], device=ids.device)
    everything = torch.arange(_LENGTH, device=ids.device).unsqueeze(0)
    recording = Recording()
    whole = denoiser.run(embeds, recording, everything)
    head = denoiser.head
    linear_head = isinstance(head, nn.Linear) and agree(
        linear(whole.picked, head.weight, head.bias), whole.logits
    )
    replayed = denoiser.run(
        take_rows(embeds, rows),
        Replaying(recording.layers, rows),
        torch.arange(len(_REPLAYED), device=ids.device).unsqueeze(0),
        position_ids=rows,
    ).logits
    refusal = None
    if not agree(replayed, take_rows(whole.logits, rows)):
        refusal = "its rows do not depend on each other through attention only"
    return Capabilities(offset, scale, linear_head, refusal)


def _probe_ids(denoiser: TransformersDenoiser, mask_id: int) -> Tensor:
    """A canvas of the mask and other ids, without the padding id, which models treat apart."""
    avoid = {mask_id, getattr(denoiser.model.config, "pad_token_id", None)}
    usable = [i for i in range(denoiser.embedding.weight.shape[0]) if i not in avoid]
    chosen = [usable[7 * k % len(usable)] for k in range(_LENGTH)]
    chosen[1] = chosen[4] = mask_id
    return torch.tensor([chosen], device=denoiser.device)


def _position_offset(
    denoiser: TransformersDenoiser, embeds: Tensor, expected: Tensor, scale: float
) -> int:
    """The offset of position ids with which embeddings reproduce the logits of ids."""
    everything = torch.arange(_LENGTH, device=embeds.device).unsqueeze(0)
    tables = [
        module.padding_idx + 1
        for name, module in denoiser.model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    for offset in (0, *tables):
        denoiser.capabilities = Capabilities(offset, scale)
        if agree(denoiser.run(embeds, Plain(), everything).logits, expected):
            return offset
    raise UnsupportedModel(
        f"{type(denoiser.model).__name__} gives other logits from inputs_embeds and position_ids "
        "than from input_ids"
    )


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Equal up to the rounding of a forward in the tensors' dtype."""
    tolerance = torch.finfo(theirs.dtype).eps ** 0.75 * float(theirs.abs().max().clamp_min(1e-6))
    return float((ours - theirs).abs().max()) <= tolerance
