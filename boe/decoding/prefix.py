"""Keys and values of frozen positions, reused from step to step of a decode.

The prompt and the blocks that are done no longer change. Under block-causal attention
nothing that they compute depends on what comes after them either, so that their keys and
values can be kept: exactly. Where attention is bidirectional they do depend on it, and
keeping them while a block is decoded is an approximation (the prefix cache of Fast-dLLM,
arXiv:2505.22618), which has to be asked for by that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from boe.denoisers.base import DenoiserFacts, Keep, KeysValues
from boe.samplers.step import Clock

PrefixKV = Literal["recompute", "exact", "approximate"]


@dataclass(frozen=True)
class Prefix:
    """What the forwards of a batch have left for its next one.

    Attributes:
        kept: per row, how many leading positions need not be run again.
        memories: keys and values of the canvas and, with guidance, of the unconditional one.
    """

    kept: tuple[int, ...]
    memories: tuple[KeysValues, ...]

    def select(self, rows: Sequence[int], length: int) -> Prefix:
        kept = tuple(self.kept[row] for row in rows)
        return Prefix(kept, tuple(memory.select(rows, length) for memory in self.memories))


@dataclass(frozen=True)
class Windows:
    """Which rows [start, stop) of each sequence a forward runs, and what is kept after it."""

    bounds: tuple[tuple[int, int], ...]
    kept: tuple[int, ...]

    @classmethod
    def of(
        cls,
        prefix_kv: PrefixKV,
        facts: DenoiserFacts,
        clocks: Sequence[Clock],
        lengths: Sequence[int],
        kept: Sequence[int] | None,
        spared: Sequence[bool],
    ) -> Windows:
        """The windows of the next forward.

        Args:
            kept: of the forward before; ``None`` if this is the first one.
            spared: rows that need no forward.
        """
        bounds, after = [], []
        for k, clock in enumerate(clocks):
            before = 0 if kept is None else kept[k]
            # The row that predicts the block's first position is run too.
            frozen = max(clock.start + facts.logits_shift, 0)
            if spared[k]:
                bounds.append((0, 0))
                after.append(before)
                continue
            if prefix_kv == "exact":
                # From the block before on, whose last step was run with masks in it.
                bounds.append((before, min(clock.end, lengths[k])))
            else:
                # A new block computes everything anew.
                bounds.append((frozen if before == frozen else 0, lengths[k]))
            after.append(frozen)
        return cls(tuple(bounds), tuple(after))

    def rows(self, device: torch.device) -> Tensor:
        """int64 (B, R), padded with −1."""
        widest = max(stop - start for start, stop in self.bounds)
        bounds = torch.tensor(self.bounds, device=device)
        rows = bounds[:, :1] + torch.arange(widest, device=device)
        return torch.where(rows < bounds[:, 1:], rows, -1)

    def shares(self, lengths: Sequence[int]) -> list[float]:
        """Per row, what is run as a share of its canvas."""
        return [
            (stop - start) / length
            for (start, stop), length in zip(self.bounds, lengths, strict=True)
        ]


def check_prefix_name(prefix_kv: str) -> None:
    """Raises a ValueError unless ``prefix_kv`` is one of the three."""
    if prefix_kv not in get_args(PrefixKV):
        names = ", ".join(get_args(PrefixKV))
        raise ValueError(f"prefix_kv must be one of {names}, got {prefix_kv!r}")


def check_prefix_kv(prefix_kv: str, facts: DenoiserFacts, keep: Keep) -> None:
    """Raises a ValueError if a model, or a strategy that needs ``keep``, cannot have it."""
    check_prefix_name(prefix_kv)
    if prefix_kv == "recompute":
        return
    if prefix_kv == "exact" and facts.block_length is None:
        raise ValueError(
            "prefix_kv='exact' needs block-causal attention: in this model the keys and values of "
            "the prompt depend on what comes after it; to freeze them all the same while a block "
            "is decoded, ask for prefix_kv='approximate'"
        )
    if prefix_kv == "approximate" and facts.block_length is not None:
        raise ValueError("this model is block-causal, where reuse is exact: prefix_kv='exact'")
    if keep not in ("nothing", "keys_values"):
        raise ValueError(
            f"prefix_kv={prefix_kv!r} needs a strategy that works on some rows of a forward: "
            "engine='replay' without bridge rows"
        )
