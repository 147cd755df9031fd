"""Which rows a forward of a decode runs, and what it leaves for the next one.

The kinds of cache are in :mod:`boe.samplers.caching`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers.base import DenoiserFacts, Keep, KeysValues, mark_rows
from boe.samplers.caching import DelayedCache, ExactCache, KVCache, PrefixCache
from boe.samplers.step import Clock


@dataclass(frozen=True)
class Kept:
    """What the forwards of a batch have left for its next one.

    Attributes:
        memories: keys and values of the canvas and, with guidance, of the unconditional one.
        ids: int64 (B, L), the tokens that they were computed from, in delayed caching.
        leading: per row, how many leading positions need not be run again, in the others.
        since: per row, its forwards from the last whole one on; 0 if it had none.
    """

    memories: tuple[KeysValues, ...]
    ids: Tensor | None
    leading: tuple[int, ...]
    since: tuple[int, ...]

    def select(self, rows: Sequence[int], length: int) -> Kept:
        ids = self.ids
        if ids is not None:
            ids = ids[torch.tensor(rows, device=ids.device), :length]
        return Kept(
            tuple(memory.select(rows, length) for memory in self.memories),
            ids,
            tuple(self.leading[row] for row in rows),
            tuple(self.since[row] for row in rows),
        )

    def back_to(self, starts: dict[int, int]) -> Kept:
        """For rows whose tokens from before were taken back, to a block with that start.

        The next forward of these rows is whole where keys and values are approximations.
        """
        return replace(
            self,
            leading=tuple(min(n, starts.get(k, n)) for k, n in enumerate(self.leading)),
            since=tuple(0 if k in starts else n for k, n in enumerate(self.since)),
        )


@dataclass(frozen=True)
class Due:
    """Rows that the next forward must run in delayed caching.

    Attributes:
        rows: int64 (B, R), padded with −1, and counts: how many of each sequence.
    """

    rows: Tensor
    counts: list[int]


@dataclass(frozen=True)
class RunPlan:
    """Which rows of each sequence a forward runs, and how things stand after it.

    Attributes:
        rows: int64 (B, R), padded with −1; ``None`` for all rows of all sequences.
        counts: how many of each sequence.
        leading, since: as in :class:`Kept`.
    """

    rows: Tensor | None
    counts: list[int]
    leading: tuple[int, ...]
    since: tuple[int, ...]

    @classmethod
    def of(
        cls,
        cache: KVCache,
        facts: DenoiserFacts,
        clocks: Sequence[Clock],
        canvas: Canvas,
        kept: Kept | None,
        due: Due | None,
        spared: Sequence[bool],
    ) -> RunPlan:
        """The plan of the next forward.

        Args:
            kept: by the forward before; ``None`` if this is the first one.
            due: in delayed caching; ``None`` if this forward is whole.
            spared: rows that need no forward.
        """
        bounds, leading, since = [], [], []
        for k, (clock, length) in enumerate(zip(clocks, canvas.lengths, strict=True)):
            before = 0 if kept is None else kept.leading[k]
            # The row that predicts the block's first position is run too.
            start = max(clock.start + facts.logits_shift, 0)
            whole = is_whole(cache, kept, k)
            if isinstance(cache, ExactCache):
                # From the block before on, whose last step was run with masks in it.
                bounds.append((min(before, start), min(clock.end, length)))
            elif isinstance(cache, PrefixCache):
                # A new block computes everything anew.
                whole = whole or before != start
                bounds.append((0 if whole else start, length))
            else:
                bounds.append((0, length))
            leading.append(before if spared[k] else start)
            count = 0 if kept is None else kept.since[k]
            since.append(count if spared[k] else 1 if whole else count + 1)
        after = tuple(leading), tuple(since)
        if due is not None:
            rows, counts = due.rows, due.counts
        elif not any(spared) and bounds == [(0, length) for length in canvas.lengths]:
            return cls(None, list(canvas.lengths), *after)
        else:
            rows = _rows_of(bounds, canvas.ids.device)
            counts = [stop - start for start, stop in bounds]
        if any(spared):
            rows = torch.where(torch.tensor(spared, device=rows.device).unsqueeze(1), -1, rows)
            counts = [0 if spare else n for spare, n in zip(spared, counts, strict=True)]
        return cls(rows, counts, *after)

    def left(
        self,
        cache: KVCache,
        canvas: Canvas,
        kept: Kept | None,
        memories: tuple[KeysValues, ...],
        spared: Sequence[bool],
    ) -> Kept:
        """What the planned forward leaves, with the ``memories`` that it gave."""
        ids = None
        if isinstance(cache, DelayedCache):
            # A copy: the canvas itself is written to.
            ids = canvas.ids.clone()
            if kept is not None and kept.ids is not None and any(spared):
                column = torch.tensor(spared, device=ids.device).unsqueeze(1)
                ids = torch.where(column, kept.ids, ids)
        return Kept(memories, ids, self.leading, self.since)


def is_whole(cache: KVCache, kept: Kept | None, row: int) -> bool:
    """Whether a row's next forward runs all of it: its first, or one that refreshes."""
    count = 0 if kept is None else kept.since[row]
    return count == 0 or (cache.refresh is not None and count >= cache.refresh)


def due_rows(
    cache: KVCache,
    facts: DenoiserFacts,
    canvas: Canvas,
    kept: Kept | None,
    seen: Tensor,
) -> Tensor | None:
    """bool (B, L): rows that the next forward must run in delayed caching.

    The masked rows, those that predict the positions ``seen``, bool (B, L), and those whose
    tokens are not the ones that their keys and values were computed from. ``None`` in other
    caches, and if all sequences are to be run as a whole.
    """
    whole = [is_whole(cache, kept, row) for row in range(canvas.batch)]
    if not isinstance(cache, DelayedCache) or all(whole):
        return None
    assert kept is not None
    assert kept.ids is not None
    here = torch.arange(canvas.length, device=canvas.ids.device)
    predicting = mark_rows(facts.row_of(torch.where(seen, here, -1)), canvas.length)
    due = canvas.masked(facts.mask_id) | predicting | (canvas.ids != kept.ids)
    if any(whole):
        due = due | torch.tensor(whole, device=due.device).unsqueeze(1)
    return due & canvas.valid


def _rows_of(bounds: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """int64 (B, R), padded with −1: the rows [start, stop) of each sequence."""
    widest = max(stop - start for start, stop in bounds)
    ends = torch.tensor(bounds, device=device)
    rows = ends[:, :1] + torch.arange(widest, device=device)
    return torch.where(rows < ends[:, 1:], rows, -1)


def check_cache(cache: KVCache, facts: DenoiserFacts, keep: Keep) -> None:
    """Raises a ValueError if a model, or a strategy that needs ``keep``, cannot have it."""
    if type(cache) is KVCache:
        return
    if isinstance(cache, ExactCache) and facts.block_length is None:
        raise ValueError(
            "kv_cache='exact' needs block-causal attention: in this model the keys and values of "
            "the prompt depend on what comes after it; to keep them all the same, which is an "
            "approximation, ask for kv_cache='delayed' or kv_cache='prefix'"
        )
    if cache.approximates and facts.block_length is not None:
        raise ValueError(
            f"kv_cache={cache.name!r} is for bidirectional models; this one is block-causal, where "
            "a cache is exact: kv_cache='exact'"
        )
    if keep not in ("nothing", "keys_values"):
        raise ValueError(
            f"kv_cache={cache.name!r} needs a strategy that works on some rows of a forward: "
            "engine='replay' without bridge rows"
        )
