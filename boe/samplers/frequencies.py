"""How often each token occurs in ordinary text: PC-Sampler's background."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SCHEMA = "boe/frequencies/1"


@dataclass(frozen=True, eq=False)
class BackgroundFrequencies:
    """Token counts of a corpus.

    Attributes:
        counts: int64 (V,), on the CPU.
    """

    counts: Tensor

    def __post_init__(self) -> None:
        if self.counts.dtype != torch.int64 or self.counts.dim() != 1:
            raise TypeError(
                f"counts must be int64 (V,), got {self.counts.dtype} {tuple(self.counts.shape)}"
            )
        if len(self.counts) == 0 or bool((self.counts < 0).any()) or not bool(self.counts.any()):
            raise ValueError("counts must not be negative and must hold at least one token")

    @classmethod
    def of_ids(
        cls, sequences: Iterable[Tensor | Sequence[int]], vocab_size: int
    ) -> BackgroundFrequencies:
        """Count the ids of tokenised texts, of any lengths.

        Raises:
            ValueError: an id outside [0, ``vocab_size``), or no id at all.
        """
        counts = torch.zeros(vocab_size, dtype=torch.int64)
        for sequence in sequences:
            ids = torch.as_tensor(sequence, dtype=torch.int64).flatten().cpu()
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
                raise ValueError(
                    f"sequences must hold ids in [0, {vocab_size}), "
                    f"got {int(ids.min())} to {int(ids.max())}"
                )
            counts += ids.bincount(minlength=vocab_size)
        return cls(counts)

    @classmethod
    def of_texts(
        cls,
        texts: Iterable[str],
        tokenizer: Callable[..., Mapping[str, Any]],
        vocab_size: int,
    ) -> BackgroundFrequencies:
        """Count the tokens of texts, such as the lines of a corpus.

        Args:
            tokenizer: a transformers tokenizer; it adds no special tokens here.
            vocab_size: the model's, which may be more than the tokenizer's.

        Raises:
            ValueError: as :meth:`of_ids`.
        """
        return cls.of_ids(
            (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts), vocab_size
        )

    @property
    def vocab_size(self) -> int:
        return len(self.counts)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def frequency(self) -> Tensor:
        """float64 (V,): count over total; a token that never occurred counts as once."""
        return self.counts.clamp_min(1).double() / self.total

    def save(self, path: Path | str) -> None:
        """Write as JSON: ``schema``, ``vocab_size``, ``total`` and ``counts`` by id."""
        seen = self.counts.nonzero().flatten().tolist()
        content = {
            "schema": SCHEMA,
            "vocab_size": self.vocab_size,
            "total": self.total,
            "counts": {str(token): int(self.counts[token]) for token in seen},
        }
        Path(path).write_text(json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> BackgroundFrequencies:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: no such file, or not such a file.
        """
        try:
            content = json.loads(Path(path).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise ValueError(f"{path} does not hold token frequencies (schema {SCHEMA!r})")
        counts = torch.zeros(int(content["vocab_size"]), dtype=torch.int64)
        for token, count in content["counts"].items():
            counts[int(token)] = count
        frequencies = cls(counts)
        if frequencies.total != content["total"]:
            raise ValueError(
                f"{path} is damaged: its counts add up to {frequencies.total}, "
                f"its total is {content['total']}"
            )
        return frequencies
