"""``boe_kernels::tis_scores``, registered with a fake; it has no derivative."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from boe_kernels._dispatch import always, implementation, note_path, register_paths
from boe_kernels._library import define_op
from boe_kernels._triton import why_not_triton
from boe_kernels.entropy.reference import accumulation_dtype

NAME = "tis_scores"
register_paths(NAME, triton=why_not_triton, library=always)

Scores = tuple[Tensor, Tensor, Tensor, Tensor]


def _forward(*args: Any) -> Scores:
    *inputs, path = args
    note_path(NAME, path)
    return implementation(__package__, path).forward(*inputs)


def _forward_fake(gradient: Tensor, delta: Tensor, entropy: Tensor, *rest: Any) -> Scores:
    dtype = accumulation_dtype(gradient.dtype)
    score, influence, gates, penalties = (
        entropy.new_empty(entropy.shape, dtype=dtype) for _ in range(4)
    )
    return score, influence, gates, penalties


forward_op = define_op(
    NAME,
    "(Tensor gradient, Tensor delta, Tensor entropy, Tensor candidates, Tensor remaining, "
    "int vocabulary, str gate, float penalty, float floor, bool anneal, str normalise, "
    "str path) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
