"""How the operators run on sharded tensors (``torch.distributed.tensor.DTensor``).

Heads and sequences of a batch do not meet in any of the attention operators, nor rows in
the vocabulary ones: sharded along these, an operator runs on each rank's part without
communication. Sums over heads (:func:`attention_mass`) and over a layer's inputs
(:func:`frozen_linear` on a weight sharded along K) come out as partial sums. Whatever else
is sharded DTensor gathers first.

A mesh of several dimensions combines these. Plain tensors are not affected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from math import prod
from typing import Any

import torch

from boe_kernels._library import NAMESPACE

Along = int | None
"""The dimension that an argument or result is sharded along; ``None`` for a whole copy."""


@dataclass(frozen=True)
class Rule:
    """One way to shard an operator.

    Attributes:
        inputs: of its tensor arguments, in order. One that is absent, empty or lacks the
            dimension is whole.
        outputs: of its results; "sum" for partial sums.
        heads: whether it splits heads, which keys must have enough of.
    """

    inputs: tuple[Along, ...]
    outputs: tuple[Along | str, ...]
    heads: bool = False


def _heads(inputs: Sequence[Along], outputs: int) -> Rule:
    return Rule(tuple(inputs), (1,) * outputs, heads=True)


def _first(inputs: str, outputs: int) -> Rule:
    """Sharded along the first dimension; ``inputs`` has "0" for it and "." for a whole copy."""
    return Rule(tuple(0 if letter == "0" else None for letter in inputs), (0,) * outputs)


RULES: dict[str, tuple[Rule, ...]] = {
    "active_query_attention": (_heads((1, 1, 1, None, None), 2), _first("00000", 2)),
    "active_query_attention_backward": (
        _heads((1, 1, 1, 1, 1, 1, None, None), 3),
        _first("00000000", 3),
    ),
    "active_row_attention": (_heads((1, 1, 1, 1, 1, None, None), 4), _first("0000000", 4)),
    "active_row_attention_backward": (
        _heads((*(1,) * 10, None, None), 3),
        _first("000000000000", 3),
    ),
    "attention_mass": (
        Rule((1, 1, 1, None, None, None), ("sum",), heads=True),
        _first("000000", 1),
    ),
    "entropy_stats": (_first("0.", 5),),
    "entropy_stats_backward": (_first("0000.", 1),),
    "linear_entropy": (_first("0...", 6),),
    "linear_entropy_backward": (_first("000", 1),),
    "inject_soft_embeddings": (_first("000..", 2),),
    "inject_soft_embeddings_backward": (_first("00", 1),),
    "tis_scores": (_first("00000", 4),),
    "sample_tokens": (_first("00.", 6),),
}
"""By operator, besides whole copies of everything; ``frozen_linear`` has rules of its own."""


@cache
def register_sharding_rules() -> None:
    """Make every operator of this package known to DTensor; again is harmless.

    Row indices and padding masks have to be DTensors too, as everywhere in PyTorch.

    Raises:
        ModuleNotFoundError: this PyTorch was built without ``torch.distributed``.
    """
    from torch.distributed.tensor.experimental import register_sharding

    for name in RULES:
        register_sharding(_op(name))(partial(_acceptable, name))
    register_sharding(_op("frozen_linear"))(_acceptable_products)


def _op(name: str) -> Any:
    return getattr(getattr(torch.ops, NAMESPACE), name).default


Shardings = list[tuple[list[Any], list[Any]]]
"""Pairs of the placements of results and of arguments, for one dimension of a mesh."""


def _acceptable(name: str, *args: Any) -> Shardings:
    """The shardings of an op's arguments, which are DTensor's descriptions of tensors."""
    from torch.distributed.tensor import Partial

    op = _op(name)
    slots = [k for k, of in enumerate(op._schema.arguments) if "Tensor" in str(of.type)]
    shapes = _result_shapes(op, args)
    found = [_whole(args, len(shapes))]
    for rule in RULES[name]:
        if rule.heads and not _divides_heads(args, slots, rule):
            continue
        inputs: list[Any] = [None] * len(args)
        for slot, along in zip(slots, rule.inputs, strict=True):
            if args[slot] is not None:
                shared = along == 0 and slot in _row_sets(op) and _is_one_set(args[slot].shape)
                inputs[slot] = _placement(None if shared else along, args[slot].shape)
        outputs = [
            Partial() if along == "sum" else _placement(along, shape)
            for along, shape in zip(rule.outputs, shapes, strict=True)
        ]
        found.append((outputs, inputs))
    # A rule that finds nothing to shard is that of whole copies again.
    return [found[0], *(one for one in found[1:] if one != found[0])]


def _acceptable_products(x: Any, weight: Any, bias: Any, path: str) -> Shardings:
    """x Wᵀ + b: along x's rows, W's rows, or, where there is no b, along the sum."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    last, whole = x.ndim - 1, Replicate()
    b = None if bias is None else whole
    found: Shardings = [([whole], [whole, whole, b, None])]
    found.append(([Shard(last)], [whole, Shard(0), None if bias is None else Shard(0), None]))
    if bias is None:
        found.append(([Partial()], [Shard(last), Shard(1), None, None]))
    return found + [([Shard(d)], [Shard(d), whole, b, None]) for d in range(last)]


def _whole(args: Sequence[Any], results: int) -> tuple[list[Any], list[Any]]:
    from torch.distributed.tensor import Replicate

    return [Replicate()] * results, [Replicate() if _is_tensor(arg) else None for arg in args]


def _placement(along: Any, shape: Sequence[int]) -> Any:
    from torch.distributed.tensor import Replicate, Shard

    there = along is not None and along < len(shape) and prod(shape) > 0
    return Shard(along) if there else Replicate()


def _divides_heads(args: Sequence[Any], slots: Sequence[int], rule: Rule) -> bool:
    """Whether every rank would get whole groups of heads: as many key heads as any other.

    DTensor combines the dimensions of a mesh, and leaves out where heads are fewer than ranks.
    """
    heads = [
        args[s].shape[1]
        for s, along in zip(slots, rule.inputs, strict=True)
        if along == 1 and args[s].ndim == 4
    ]
    sizes = args[slots[0]].mesh.shape
    combined = (prod(some) for n in range(len(sizes)) for some in combinations(sizes, n + 1))
    ranks = [count for count in combined if count <= min(heads)]
    return bool(ranks) and all(count % n == 0 for n in ranks for count in heads)


def _row_sets(op: Any) -> list[int]:
    """Which arguments hold row indices."""
    names = ("active_idx", "rows", "candidates")
    return [k for k, of in enumerate(op._schema.arguments) if of.name in names]


def _is_one_set(shape: Sequence[int]) -> bool:
    """Whether all canvases share these indices, so that they are not the batch's to split."""
    return len(shape) == 1 or shape[0] == 1


def _result_shapes(op: Any, args: Sequence[Any]) -> list[tuple[int, ...]]:
    """Shapes of the results, some of which are empty on some paths."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def like(arg: Any) -> Any:
        if not _is_tensor(arg):
            return arg
        meta, device = arg.tensor_meta, arg.mesh.device_type
        return torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype, device=device)

    with FakeTensorMode(), torch.no_grad():
        results = op(*map(like, args))
    return [tuple(r.shape) for r in (results if isinstance(results, tuple) else (results,))]


def _is_tensor(arg: Any) -> bool:
    return hasattr(arg, "tensor_meta")
