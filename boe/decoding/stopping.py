"""Stop patterns: a sequence is done once everything up to a pattern's end is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from boe.arguments import token_ids
from boe.canvas import Canvas


def check_patterns(
    patterns: Sequence[Sequence[int]], vocabulary: int, mask_id: int
) -> tuple[tuple[int, ...], ...]:
    """The patterns as tuples.

    Raises:
        TypeError: no patterns. ValueError: an empty pattern, or an id that cannot be written.
    """
    checked = []
    for pattern in patterns:
        if not isinstance(pattern, Iterable) or isinstance(pattern, str):
            raise TypeError(f"stop must hold patterns, sequences of token ids, got {pattern!r}")
        ids = token_ids("stop", pattern, vocabulary)
        if not ids:
            raise ValueError("stop must hold patterns of at least one id, got an empty one")
        if mask_id in ids:
            raise ValueError(f"stop must hold ids other than the mask, got {mask_id}")
        checked.append(ids)
    return tuple(checked)


def stopped_at(
    canvas: Canvas, given: Tensor, masked: Tensor, patterns: tuple[tuple[int, ...], ...]
) -> Tensor:
    """int64 (B,): the length up to the end of the first stop pattern, −1 where there is none.

    A pattern counts if everything before its end is written, and its last token was
    (``given`` (B, L): a token of the start, such as the prompt's, stops nothing).
    """
    ends = _ends(canvas, given, patterns) & (masked.cumsum(dim=1) == 0)
    first = ends.to(torch.int8).argmax(dim=1) + 1
    return torch.where(ends.any(dim=1), first, -1)


def beyond_end(canvas: Canvas, given: Tensor, patterns: tuple[tuple[int, ...], ...]) -> Tensor:
    """bool (B, L): positions behind the first stop pattern, though masks be left before it.

    The answer ends there at the latest: nothing behind it will be part of it.
    """
    ends = _ends(canvas, given, patterns)
    return ends.cumsum(dim=1) > ends


def _ends(canvas: Canvas, given: Tensor, patterns: tuple[tuple[int, ...], ...]) -> Tensor:
    """bool (B, L), the last positions of patterns that were written to their end."""
    ids, length = canvas.ids, canvas.length
    ends = torch.zeros_like(given)
    for pattern in patterns:
        if len(pattern) > length:
            continue
        here = torch.ones_like(given[:, len(pattern) - 1 :])
        for offset, token in enumerate(pattern):
            here &= ids[:, offset : length - len(pattern) + 1 + offset] == token
        ends[:, len(pattern) - 1 :] |= here
    return ends & ~given & canvas.valid


def end_by_caller(
    stop_when: Callable[[int, list[int]], int | None] | None,
    number: int,
    ids: list[int],
    mask_id: int,
) -> int:
    """Where the caller says that sequence ``number`` ends; −1 if it does not.

    Raises:
        ValueError: an end behind what is written.
    """
    if stop_when is None:
        return -1
    written = ids.index(mask_id) if mask_id in ids else len(ids)
    end = stop_when(number, ids[:written])
    if end is None:
        return -1
    if not 1 <= end <= written:
        raise ValueError(
            f"stop_when must return a length in [1, {written}] or None for sequence {number}, "
            f"got {end}"
        )
    return end
