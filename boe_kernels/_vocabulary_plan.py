"""Calls of the vocabulary and steering ops to come, for a warm-up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import partial

import torch
from torch import Tensor

from boe_kernels._arguments import (
    require_floating_dtype,
    require_int,
    require_op_names,
    require_positive,
)
from boe_kernels._attention_plan import PlannedCall
from boe_kernels._dispatch import implementation
from boe_kernels._rows import check_rows
from boe_kernels.entropy.api import check_suppressed_ids
from boe_kernels.head_entropy.api import BLOCK_ELEMENTS
from boe_kernels.soft_embedding.op import NAME as SOFT_EMBEDDING
from boe_kernels.soft_embedding.op import TOP_K
from boe_kernels.tis_scores.reference import GATES, NORMALISATIONS

_OF_LOGITS = ("entropy_stats", "sample_tokens")
_OF_EMBEDDINGS = ("linear_entropy", SOFT_EMBEDDING, TOP_K, "tis_scores")
OPS = (*_OF_LOGITS, *_OF_EMBEDDINGS)


@dataclass(frozen=True)
class VocabularyPlan:
    """Calls of the vocabulary and steering ops to come, for :func:`warmup`.

    Attributes:
        vocabulary: V.
        width: D, of the embeddings and hidden states.
        rows: the most rows of logits, or candidates, of a call; as many are allocated.
        dtype: of hidden states, embeddings and their gradients.
        logits_dtype: of logits (and probabilities); ``dtype`` by default.
        suppressed: how many suppressed ids there are; 0 for none.
        top_k: of the top-k soft write.
        gate, normalise, anneal: as ``tis_scores`` takes them.
        ops: which of ``entropy_stats``, ``sample_tokens``, ``linear_entropy``,
            ``inject_soft_embeddings`` (the dense form), ``inject_soft_embeddings(top_k)`` and
            ``tis_scores``; all by default.

    Raises:
        TypeError, ValueError: a field is not as above.
    """

    vocabulary: int
    width: int
    rows: int
    _: KW_ONLY
    dtype: torch.dtype = torch.bfloat16
    logits_dtype: torch.dtype | None = None
    suppressed: int = 0
    top_k: int = 64
    gate: str = "none"
    normalise: str = "none"
    anneal: bool = False
    ops: tuple[str, ...] = OPS

    def __post_init__(self) -> None:
        require_positive(
            vocabulary=self.vocabulary, width=self.width, rows=self.rows, top_k=self.top_k
        )
        require_floating_dtype("dtype", self.dtype)
        if self.logits_dtype is not None:
            require_floating_dtype("logits_dtype", self.logits_dtype)
        require_int("suppressed", self.suppressed)
        if not 0 <= self.suppressed <= self.vocabulary:
            raise ValueError(
                f"suppressed must lie between 0 and V = {self.vocabulary}, got {self.suppressed}"
            )
        for name, value, choices in (
            ("gate", self.gate, GATES),
            ("normalise", self.normalise, NORMALISATIONS),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        require_op_names(self.ops, OPS)

    @property
    def width_of_heads(self) -> None:
        """These ops have no heads."""
        return

    @property
    def table(self) -> tuple[int, int]:
        """(V, D) of the embedding table, on which the path of the soft write depends."""
        return self.vocabulary, self.width

    def dtype_of(self, op: str) -> torch.dtype:
        """On which the path of ``op`` depends."""
        return self._logits_dtype if op in _OF_LOGITS else self.dtype

    def calls(self, op: str, path: str = "triton") -> Iterator[PlannedCall]:
        """Calls of ``op`` that together need every binary that the planned ones need.

        Args:
            path: that the op takes, "triton" or "triton_fused".
        """
        if op == "tis_scores":
            yield self._scores
            return
        if op in (SOFT_EMBEDDING, TOP_K):
            top_k = self.top_k if op == TOP_K else None
            for is_logits in (True, False):
                yield partial(self._soft_write, path=path, top_k=top_k, is_logits=is_logits)
            return
        call = {
            "entropy_stats": self._statistics,
            "sample_tokens": self._draw,
            "linear_entropy": self._head,
        }[op]
        # Few rows are cut into parts, many are not: there is nothing between the two.
        for rows in dict.fromkeys((1, self.rows)):
            yield partial(call, rows=rows)

    def check_values(self, op: str, device: torch.device) -> None:
        """Check index sets and suppressed ids, as the op's public function does."""
        name = {"tis_scores": "candidates", SOFT_EMBEDDING: "rows", TOP_K: "rows"}.get(op)
        if name is not None:
            rows = torch.zeros(1, 1, dtype=torch.int64, device=device)
            check_rows(name, rows[0], 1, 1, like=rows)
            check_rows(name, rows, 1, 1, like=rows)
        else:
            check_suppressed_ids(self._ids(device), self.vocabulary, torch.empty(0, device=device))

    # --- the ops --------------------------------------------------------------------

    def _statistics(self, device: torch.device, rows: int) -> None:
        kernels = implementation("boe_kernels.entropy", "triton")
        logits, ids = self._logits(device, rows), self._ids(device)
        entropy, lse, *_ = kernels.forward(logits, ids)
        kernels.backward(torch.ones_like(entropy), logits, entropy, lse, ids)

    def _draw(self, device: torch.device, rows: int) -> None:
        kernels = implementation("boe_kernels.token_sampling", "triton")
        seeds = torch.arange(rows, device=device)
        kernels.forward(self._logits(device, rows), seeds, 1.0, self._ids(device))

    def _head(self, device: torch.device, rows: int) -> None:
        kernels = implementation("boe_kernels.head_entropy", "triton")
        # The matrix products are the vendor's: ours do not see how wide they are.
        hidden = torch.zeros(rows, 16, dtype=self.dtype, device=device)
        weight = torch.zeros(self.vocabulary, 16, dtype=self.dtype, device=device)
        for with_gradient in (True, False):
            kernels.forward(hidden, weight, None, self._ids(device), BLOCK_ELEMENTS, with_gradient)

    def _soft_write(
        self, device: torch.device, path: str, top_k: int | None, is_logits: bool
    ) -> None:
        kernels = implementation("boe_kernels.soft_embedding", path)
        # Neither do these kernels see how many ids there are, except that the fused form cuts
        # them into parts, and loads them in one way or another.
        ids = self.top_k
        if path == "triton_fused":
            ids = min(self.vocabulary, kernels.SMALLEST_CUT + self.vocabulary % 16)
        table = torch.zeros(ids, self.width, dtype=self.dtype, device=device)
        canvas = torch.zeros(1, 1, self.width, dtype=self.dtype, device=device)
        values = torch.ones(1, 1, ids, dtype=self._logits_dtype, device=device)
        rows = torch.zeros(1, 1, dtype=torch.int64, device=device)
        kernels.forward(canvas, rows, values, table, table[0], 0.5, top_k, is_logits)

    def _scores(self, device: torch.device) -> None:
        kernels = implementation("boe_kernels.tis_scores", "triton")
        gradient = torch.zeros(1, 1, self.width, dtype=self.dtype, device=device)
        entropy = torch.zeros(1, 1, device=device)
        candidates = torch.zeros(1, 1, dtype=torch.int64, device=device)
        options = (max(2, self.vocabulary), self.gate, 0.5, 0.5, self.anneal, self.normalise)
        kernels.forward(gradient, gradient, entropy, candidates, entropy[0], *options)

    # --- tensors --------------------------------------------------------------------

    @property
    def _logits_dtype(self) -> torch.dtype:
        return self.logits_dtype or self.dtype

    def _logits(self, device: torch.device, rows: int) -> Tensor:
        return torch.zeros(rows, self.vocabulary, dtype=self._logits_dtype, device=device)

    def _ids(self, device: torch.device) -> Tensor | None:
        return torch.arange(self.suppressed, device=device) if self.suppressed else None
