"""``boe_kernels::attention_mass``, registered with a fake; it has no derivative."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from boe_kernels._dispatch import always, implementation, note_path, register_paths
from boe_kernels._library import define_op
from boe_kernels._triton import why_not_triton
from boe_kernels.entropy.reference import accumulation_dtype

NAME = "attention_mass"
register_paths(NAME, triton=why_not_triton, library=always)


def _forward(*args: Any) -> Tensor:
    *inputs, path = args
    note_path(NAME, path)
    return implementation(__package__, path).forward(*inputs)


def _forward_fake(q_rows: Tensor, k: Tensor, *rest: Any) -> Tensor:
    dtype = accumulation_dtype(q_rows.dtype)
    return k.new_empty((k.shape[0], k.shape[2]), dtype=dtype)


forward_op = define_op(
    NAME,
    "(Tensor q_rows, Tensor k, Tensor lse_rows, Tensor? weights, Tensor? rows, "
    "Tensor? key_mask, float scale, int? window, int? block_size, str path) -> Tensor",
    _forward,
    _forward_fake,
)
