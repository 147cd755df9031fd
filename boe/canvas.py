"""The canvas: a batch of partly masked token sequences of any lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Canvas:
    """Token ids (B, L) int64, of which row b's first ``lengths[b]`` are real.

    The rest is padding on the right: it is never attended to, scored or written.
    """

    ids: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Canvas | Tensor | Sequence[Tensor]) -> Canvas:
        """A canvas from a canvas, one tensor (L,) or (B, L), or tensors of any lengths.

        Raises:
            TypeError: not integer tensors. ValueError: no sequence, or an empty one.
        """
        if isinstance(sequences, Canvas):
            sequences._check()
            return sequences
        if isinstance(sequences, Tensor):
            if sequences.dim() not in (1, 2):
                raise ValueError(
                    f"canvas must have shape (L,) or (B, L), got {tuple(sequences.shape)}"
                )
            sequences = list(sequences.unsqueeze(0) if sequences.dim() == 1 else sequences)
        if not sequences:
            raise ValueError("canvas must hold at least one sequence, got none")
        for sequence in sequences:
            if not isinstance(sequence, Tensor) or sequence.dtype != torch.int64:
                got = sequence.dtype if isinstance(sequence, Tensor) else type(sequence).__name__
                raise TypeError(f"canvas must hold int64 token ids, got {got}")
            if sequence.dim() != 1:
                raise ValueError(
                    f"each sequence of the canvas must have shape (L,), got {tuple(sequence.shape)}"
                )
        lengths = tuple(len(sequence) for sequence in sequences)
        if 0 in lengths:
            raise ValueError(f"sequence {lengths.index(0)} of the canvas is empty")
        ids = sequences[0].new_zeros(len(sequences), max(lengths))
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        return cls(ids, lengths)

    def _check(self) -> None:
        if self.ids.dtype != torch.int64:
            raise TypeError(f"canvas must hold int64 token ids, got {self.ids.dtype}")
        if self.ids.dim() != 2 or self.ids.shape[0] != len(self.lengths):
            raise ValueError(
                f"canvas must have ids of shape (B, L) and B lengths, got {tuple(self.ids.shape)} "
                f"and {len(self.lengths)}"
            )
        if not all(0 < length <= self.ids.shape[1] for length in self.lengths):
            raise ValueError(
                f"canvas must have lengths in [1, {self.ids.shape[1]}], got {self.lengths}"
            )

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        """Positions of the longest sequence, to which the others are padded."""
        return self.ids.shape[1]

    @property
    def padded(self) -> bool:
        """Whether a sequence is shorter than the canvas."""
        return min(self.lengths) < self.length

    @property
    def valid(self) -> Tensor:
        """bool (B, L), True at real tokens."""
        lengths = torch.tensor(self.lengths, device=self.ids.device)
        return torch.arange(self.length, device=self.ids.device) < lengths.unsqueeze(1)

    def masked(self, mask_id: int) -> Tensor:
        """bool (B, L), True at real positions that hold the mask token."""
        return (self.ids == mask_id) & self.valid

    def select(self, rows: Sequence[int]) -> Canvas:
        """The canvas of the given batch rows, cut to the longest of them."""
        lengths = tuple(self.lengths[row] for row in rows)
        index = torch.tensor(rows, device=self.ids.device)
        return Canvas(self.ids[index, : max(lengths)].clone(), lengths)

    def sequences(self) -> list[Tensor]:
        """Each row without its padding."""
        return [row[:length] for row, length in zip(self.ids, self.lengths, strict=True)]
