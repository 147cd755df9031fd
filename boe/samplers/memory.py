"""What policies carry from one step to the next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from boe.canvas import Canvas

RowMemory = dict[str, tuple[Tensor, float]]
"""One row's part of a memory: name → (tensor (N, …), fill)."""


class Memory:
    """Named tensors (B, N, …), a row per sequence, which leave the batch with their rows.

    Rows may have different N: dimension 1 is padded with the entry's ``fill``.
    """

    def __init__(self) -> None:
        self._entries: RowMemory = {}

    def get(self, name: str) -> Tensor | None:
        """The tensor (B, N, …) kept under ``name``, or ``None`` if nothing is."""
        entry = self._entries.get(name)
        return None if entry is None else entry[0]

    def on_canvas(self, name: str, canvas: Canvas, fill: float) -> Tensor:
        """The float64 tensor (B, L) kept under ``name``, all ``fill`` if nothing is."""
        kept = self.get(name)
        if kept is None:
            shape = (canvas.batch, canvas.length)
            return torch.full(shape, fill, dtype=torch.float64, device=canvas.ids.device)
        missing = canvas.length - kept.shape[1]
        return torch.nn.functional.pad(kept, (0, missing), value=fill)

    def put(self, name: str, value: Tensor, fill: float) -> None:
        self._entries[name] = (value, fill)

    def copy(self) -> Memory:
        """A memory of the same tensors, to which a step can put without changing this one."""
        twin = Memory()
        twin._entries = dict(self._entries)
        return twin

    def select(self, rows: Sequence[int]) -> Memory:
        """The memory of the given batch rows."""
        chosen = Memory()
        for name, (value, fill) in self._entries.items():
            chosen.put(name, value[torch.tensor(rows, device=value.device)], fill)
        return chosen

    def row(self, row: int) -> RowMemory:
        """One row's part, to be joined again later."""
        return {name: (value[row], fill) for name, (value, fill) in self._entries.items()}

    @classmethod
    def join(cls, rows: Sequence[RowMemory]) -> Memory:
        """The memory of a batch from its rows' parts; rows without an entry get its fill."""
        joined = cls()
        for name in dict.fromkeys(name for row in rows for name in row):
            like, fill = next(row[name] for row in rows if name in row)
            empty = like[:0]
            values = [row[name][0] if name in row else empty for row in rows]
            padded = torch.nn.utils.rnn.pad_sequence(values, True, padding_value=fill)
            joined.put(name, padded, fill)
        return joined
