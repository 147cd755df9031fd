"""Attention calls to come, for a warm-up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from boe_kernels._arguments import (
    check_band,
    check_grad_rows,
    require_floating_dtype,
    require_int,
    require_op_names,
    require_positive,
)
from boe_kernels._dispatch import implementation
from boe_kernels._rows import check_rows

PlannedCall = Callable[[torch.device], object]
"""Makes one call, on zeros, on the device that it is given; on meta tensors to be recorded."""

OPS = ("active_query_attention", "active_row_attention", "attention_mass")

# Tiles hold multiples of so many rows: launches differ only where another tile is begun.
_LEAST_TILE = 16


@dataclass(frozen=True)
class AttentionPlan:
    """Attention calls to come, for :func:`warmup`: all that their binaries depend on.

    Numbers of canvases are not among it, and neither is the length in itself: but which of
    two tiles is taken depends on it.

    Attributes:
        heads: Hq, the query heads. kv_heads: Hkv; Hq by default.
        head_dim: D.
        length: L, the rows of a canvas and its keys. Another length is another plan.
        dtype: of queries, keys and values.
        active: the numbers of active rows to come, 1 to L each; every one by default, which
            costs little: most need the same binaries.
        padded: there is a ``key_padding_mask``. biased: there is a ``key_bias``, and maybe a mask.
        window, block_size, grad_rows, compact_dq: as the ops take them.
        ragged: besides index sets that the batch shares there are some of shape (B, A), B > 1.
        ops: which of ``active_query_attention``, ``active_row_attention`` and
            ``attention_mass``; all by default.

    Raises:
        TypeError, ValueError: a field is not as above.
    """

    heads: int
    head_dim: int
    length: int
    _: KW_ONLY
    kv_heads: int | None = None
    dtype: torch.dtype = torch.bfloat16
    active: Sequence[int] | None = None
    padded: bool = False
    biased: bool = False
    window: int | None = None
    block_size: int | None = None
    ragged: bool = False
    grad_rows: str = "queries"
    compact_dq: bool = False
    ops: tuple[str, ...] = OPS

    def __post_init__(self) -> None:
        require_positive(heads=self.heads, head_dim=self.head_dim, length=self.length)
        if self.kv_heads is not None:
            require_positive(kv_heads=self.kv_heads)
            if self.heads % self.kv_heads:
                raise ValueError(
                    f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}"
                )
        require_floating_dtype("dtype", self.dtype)
        if self.active is not None and not self.active:
            raise ValueError("active must name at least one number of rows, got none")
        for count in self.active or ():
            require_int("each of active", count)
            if not 1 <= count <= self.length:
                raise ValueError(
                    f"active must hold numbers from 1 to L = {self.length}, got {count}"
                )
        check_band(self.window, self.block_size)
        check_grad_rows(self.grad_rows)
        require_op_names(self.ops, OPS)

    @property
    def width_of_heads(self) -> int:
        """Of heads, on which the path of attention ops depends."""
        return self.head_dim

    @property
    def table(self) -> None:
        """These ops read no embedding table."""
        return

    def dtype_of(self, op: str) -> torch.dtype:
        """On which the path of ``op`` depends."""
        return self.dtype

    def calls(self, op: str) -> Iterator[PlannedCall]:
        """Calls of ``op`` that together need every binary that the planned ones need."""
        yield from {
            "active_query_attention": self._query_calls,
            "active_row_attention": self._row_calls,
            "attention_mass": self._mass_calls,
        }[op]()

    def check_values(self, op: str, device: torch.device) -> None:
        """Check index sets, as the op's public function does."""
        names = ["row_idx"]
        if op == "active_query_attention":
            # The second are those of ``DeferredRows``.
            names = ["active_idx", "the bound rows"]
        for name, own in product(names, self._own_sets()):
            rows = self._rows(device, 1, own)
            check_rows(name, rows if own else rows[0], rows.shape[0], self.length, like=rows)

    # --- the ops --------------------------------------------------------------------

    def _query_calls(self) -> Iterator[PlannedCall]:
        yield self._query_forward
        yield from self._with_rows(self._query_backward)

    def _query_forward(self, device: torch.device) -> None:
        q, k = self._heads(device, 1, self.length)
        kernels = implementation("boe_kernels.query_attention", "triton")
        kernels.forward(q, k, k, *self._restrictions(device, 1))

    def _query_backward(self, device: torch.device, count: int, own: bool) -> None:
        rows = self._rows(device, count, own)
        batch = rows.shape[0]
        q, k = self._heads(device, batch, self.length)
        lse = torch.zeros(batch, self.heads, self.length, device=device)
        options = (*self._restrictions(device, batch), self.grad_rows, self.compact_dq)
        kernels = implementation("boe_kernels.query_attention", "triton")
        kernels.backward(q, q, k, k, q, lse, rows, *options)

    def _row_calls(self) -> Iterator[PlannedCall]:
        return self._with_rows(self._replay)

    def _replay(self, device: torch.device, count: int, own: bool) -> None:
        rows = self._rows(device, count, own)
        batch = rows.shape[0]
        _, frozen = self._heads(device, batch, self.length)
        q, live = self._heads(device, batch, count)
        inputs = (q, live, live, frozen, frozen)
        restrictions = self._restrictions(device, batch)
        kernels = implementation("boe_kernels.row_attention", "triton")
        out, lse, keys, values = kernels.forward(*inputs, rows, *restrictions)
        kernels.backward(q, *inputs, keys, values, out, lse, rows, *restrictions)

    def _mass_calls(self) -> Iterator[PlannedCall]:
        for weighed in (True, False):
            yield from self._with_rows(partial(self._mass, named=True, weighed=weighed))
            if self.window is None and self.block_size is None:
                # Where the rows stand makes no difference, and need not be told.
                count = self._counts()[0]
                yield partial(self._mass, count=count, own=False, named=False, weighed=weighed)

    def _mass(
        self, device: torch.device, count: int, own: bool, named: bool, weighed: bool
    ) -> None:
        rows = self._rows(device, count, own)
        batch = rows.shape[0]
        q, _ = self._heads(device, batch, count)
        _, k = self._heads(device, batch, self.length)
        lse = torch.zeros(batch, self.heads, count, device=device)
        weights = torch.ones(batch, count, device=device) if weighed else None
        kernels = implementation("boe_kernels.attention_mass", "triton")
        restrictions = self._restrictions(device, batch)
        kernels.forward(q, k, lse, weights, rows if named else None, *restrictions)

    # --- tensors --------------------------------------------------------------------

    def _with_rows(self, call: Callable[..., None]) -> Iterator[PlannedCall]:
        for count, own in product(self._counts(), self._own_sets()):
            yield partial(call, count=count, own=own)

    def _counts(self) -> list[int]:
        """Numbers of active rows, one for each way in which they are cut into tiles."""
        group = self.heads // (self.kv_heads or self.heads)
        found: dict[tuple[int, int], int] = {}
        for count in self.active or range(1, self.length + 1):
            tiles = (-(-count * group // _LEAST_TILE), -(-count // _LEAST_TILE))
            found.setdefault(tiles, count)
        return list(found.values())

    def _own_sets(self) -> tuple[bool, ...]:
        """Whether each canvas has an index set of its own."""
        return (False, True) if self.ragged else (False,)

    def _heads(self, device: torch.device, batch: int, rows: int) -> tuple[Tensor, Tensor]:
        """Queries and keys, as models lay them out."""
        q, k = (
            torch.zeros(batch, rows, heads, self.head_dim, dtype=self.dtype, device=device)
            for heads in (self.heads, self.kv_heads or self.heads)
        )
        return q.transpose(1, 2), k.transpose(1, 2)

    def _rows(self, device: torch.device, count: int, own: bool) -> Tensor:
        return torch.arange(count, device=device).repeat(2 if own else 1, 1)

    def _restrictions(self, device: torch.device, batch: int) -> tuple[Any, ...]:
        """Key mask, scale, window and block size."""
        mask = None
        if self.padded or self.biased:
            dtype = torch.float32 if self.biased else torch.bool
            mask = torch.ones(batch, self.length, dtype=dtype, device=device)
        return mask, self.head_dim**-0.5, self.window, self.block_size
