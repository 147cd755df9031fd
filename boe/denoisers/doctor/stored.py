"""Checks of what a checkpoint holds, before a model is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boe.denoisers.checkpoint import Checkpoint, listed
from boe.denoisers.doctor.finding import Finding, size_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_files(checkpoint: Checkpoint) -> Finding:
    """What was opened: files, tensors, bytes, dtype."""
    size = sum(tensor.bytes for tensor in checkpoint.tensors.values())
    detail = f"{len(checkpoint.files)} files, {len(checkpoint.tensors)} tensors, {size_text(size)}"
    try:
        detail += f", {str(checkpoint.dtype).removeprefix('torch.')}"
    except FileNotFoundError as error:
        return Finding("files", "warning", f"{detail}; {error}", "give --dtype")
    if checkpoint.pickled:
        advice = "rewrite them once with `boe convert --allow-pickle`"
        return Finding("files", "warning", f"{detail}, pickled", advice)
    return Finding("files", "ok", detail)


def check_values(checkpoint: Checkpoint) -> Finding:
    """Whether the numbers are numbers; an incomplete download leaves zeros behind."""
    empty = []
    try:
        for name, tensor in checkpoint.stream():
            if not bool(tensor.isfinite().all()):
                detail = f"{name} holds NaN or infinity"
                return Finding("values", "failed", detail, "copy the checkpoint again")
            if tensor.is_floating_point() and tensor.dim() > 1 and not bool(tensor.any()):
                empty.append(name)
    except FileNotFoundError as error:
        return Finding("values", "failed", str(error), "copy the checkpoint again")
    if empty:
        detail = listed(f"{len(empty)} matrices of zeros", empty)
        return Finding("values", "warning", detail, "compare the files' checksums")
    return Finding("values", "ok", "finite, no matrix of zeros")


def check_vocabulary(words: PreTrainedTokenizerBase, rows: int) -> Finding:
    """Whether every token has a row of the embedding table, of which there are ``rows``."""
    named = set(words.get_vocab().values())
    beyond = sorted(index for index in named if index >= rows)
    detail = f"{len(named)} tokens on {rows} rows"
    if beyond:
        advice = "this is another model's tokenizer; give --tokenizer"
        return Finding("vocabulary", "failed", f"{detail}; id {beyond[0]} has no row", advice)
    return Finding("vocabulary", "ok", f"{detail}; {rows - len(named)} rows without a token")


def check_ids(
    mask_id: int, config: dict[str, object], words: PreTrainedTokenizerBase | None, rows: int
) -> Finding:
    """Whether the mask is an id of the vocabulary and nobody else's, and config and tokenizer
    mean the same ids."""
    if not 0 <= mask_id < rows:
        detail = f"the mask is id {mask_id}, but the vocabulary has {rows} rows"
        return Finding("ids", "failed", detail, "give --mask-id")
    token = None if words is None else words.convert_ids_to_tokens(mask_id)
    detail = f"mask {mask_id}" + (f" ({token})" if token else "")
    disagreements = []
    for role in ("pad", "eos", "bos"):
        named = config.get(f"{role}_token_id")
        ids = named if isinstance(named, list) else [] if named is None else [named]
        if mask_id in ids:
            detail = f"{detail} is also the {role} token"
            return Finding("ids", "failed", detail, "give --mask-id, or correct config.json")
        if ids:
            detail += f", {role} {' or '.join(map(str, ids))}"
        theirs = None if words is None else getattr(words, f"{role}_token_id")
        if ids and theirs is not None and theirs not in ids:
            disagreements.append(f"{role} is {theirs} to the tokenizer")
    if disagreements:
        advice = "answers end at the tokenizer's; correct whichever is wrong"
        return Finding("ids", "warning", f"{detail}; {', '.join(disagreements)}", advice)
    return Finding("ids", "ok", detail)
