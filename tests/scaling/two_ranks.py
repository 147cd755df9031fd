"""What each of two ranks computes, whole and shared out. Run by ``test_two_ranks.py``.

``python two_ranks.py FOLDER``, with torchrun's variables in the environment: writes what was
found as JSON, by rank.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from published_checkpoints import MASK, WORDS, load_published
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

import boe_kernels as ops
from boe import UnsupportedModel, generate
from boe.canvas import Canvas
from boe.denoisers import GradientRequest
from boe.denoisers.base import required_keep
from boe.denoisers.tensor_parallel import parallelise
from boe_kernels import pad_rows
from boe_kernels.sharding import register_sharding_rules

CANDIDATES = torch.tensor([[2, 8], [4, -1]])
PROBES = torch.tensor([[5, 7, 11], [0, 9, -1]])


def canvas() -> Canvas:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, WORDS, (length,), generator=generator) for length in (17, 12)]
    rows[0][[2, 5, 7, 8, 11, 15]] = MASK
    rows[1][[0, 4, 9]] = MASK
    return Canvas.of(rows)


def active() -> Tensor:
    members = torch.zeros(2, 17, dtype=torch.bool)
    members[0, [2, 3, 4, 5, 6, 7, 8, 10, 11]] = True
    members[1, [0, 3, 4, 5, 8, 9]] = True
    return pad_rows(members)


def measured(denoiser: Any) -> dict[str, Tensor]:
    """Logits, the gradient by every engine, and how bridge rows rank."""
    positions = torch.tensor([[2, 5, 7, 8, 11, 15], [0, 4, 9, -1, -1, -1]])
    found = {}
    for engine, alpha in (("replay", 0.5), ("late", 0.0), ("dense", 0.0)):
        prediction = denoiser.predict(canvas(), positions, required_keep(engine, False))
        request = GradientRequest(CANDIDATES, PROBES, active(), alpha=alpha, engine=engine)
        found[engine] = denoiser.entropy_gradient(prediction, request).gradient
        found["logits"] = prediction.logits[prediction.logits.isfinite()]
    prediction = denoiser.predict(canvas(), positions, "attention")
    request = GradientRequest(CANDIDATES, PROBES, active())
    found["bridges"], _ = denoiser.bridge_scores(prediction, request, "received_paid")
    return found


def decoded(denoiser: Any) -> list[list[int]]:
    whole = canvas()
    rows = [row[:length] for row, length in zip(whole.ids, whole.lengths, strict=True)]
    options: list[dict[str, Any]] = [
        {"sampler": "confidence"},
        {"sampler": "boe"},
        {"sampler": "boe:active=bridges,bridges=0.5"},
        {"sampler": "boe+delayed"},
        {"sampler": "boe", "temperature": 1.0, "seed": 3},
    ]
    return [
        item.ids.tolist() for given in options for item in generate(denoiser, rows, **given).items
    ]


def compared(
    name: str, folder: Path, mesh: DeviceMesh, *, in_memory: bool = False, **changes: object
) -> dict[str, Any]:
    """Errors of a model that is shared out, with those of float32 as the yardstick.

    Args:
        in_memory: it is shared out once every rank has read all of it; else each reads its part.
    """
    place = folder / f"{name}{dist.get_rank()}"
    denoiser = load_published(name, place, **changes).denoiser
    truth, sequences = measured(denoiser), decoded(denoiser)
    narrow = load_published(name, place, **changes).denoiser
    narrow.model.float()
    single = measured(narrow)
    if in_memory:
        parallelise(denoiser, mesh)
    else:
        denoiser = load_published(name, place, mesh, **changes).denoiser
    weight = denoiser.model.model.layers[0].self_attn.q_proj.weight
    shared, again = measured(denoiser), decoded(denoiser)
    return {
        "local": list(weight.to_local().shape),
        "whole": list(weight.shape),
        "same_sequences": sequences == again,
        "sequences": again,
        "errors": {key: float((shared[key] - truth[key]).norm()) for key in truth},
        "float32": {key: float((single[key].double() - truth[key]).norm()) for key in truth},
        "sizes": {key: float(truth[key].norm()) for key in truth},
    }


def predicted(name: str, folder: Path, mesh: DeviceMesh, **changes: object) -> dict[str, Any]:
    """The same of logits alone."""
    positions = torch.tensor([[2, 5, 7, 8, 11, 15], [0, 4, 9, -1, -1, -1]])

    def logits(denoiser: Any) -> Tensor:
        found = denoiser.predict(canvas(), positions).logits
        return found[found.isfinite()]

    place = folder / f"{name}{dist.get_rank()}"
    narrow = load_published(name, place, **changes).denoiser
    truth = logits(narrow)
    narrow.model.float()
    single = logits(narrow)
    denoiser = load_published(name, place, mesh, **changes).denoiser
    return {
        "error": float((logits(denoiser) - truth).norm()),
        "float32": float((single.double() - truth).norm()),
        "size": float(truth.norm()),
    }


def refusals(folder: Path, mesh: DeviceMesh) -> list[str]:
    found = []
    mdlm = load_published("mdlm", folder / f"mdlm{dist.get_rank()}").denoiser
    experts = load_published("llada2", folder / f"llada2{dist.get_rank()}").denoiser
    odd = load_published("dream", folder / f"odd{dist.get_rank()}", num_key_value_heads=1).denoiser
    for denoiser in (mdlm, experts, odd):
        try:
            parallelise(denoiser, mesh)
        except (UnsupportedModel, ValueError) as error:
            found.append(str(error))
    return found


Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], dict[str, list[Any]]]


def attention_calls() -> Iterator[tuple[str, Call]]:
    """Calls, with the dimensions along which each tensor is sharded: by heads, by batch."""

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    generator = torch.Generator().manual_seed(0)
    q, k, v = drawn(2, 4, 9, 8), drawn(2, 2, 9, 8), drawn(2, 2, 9, 8)
    padding = torch.ones(2, 9, dtype=torch.bool)
    padding[1, 7:] = False
    rows = torch.tensor([[0, 4, 6], [1, 2, -1]])
    flat = torch.tensor([1, 5])
    attention = ops.active_query_attention

    bias = drawn(2, 9)
    bias[0, 3] = -torch.inf

    def padded(*t: Tensor) -> Tensor:
        return attention(*t[:4], key_padding_mask=t[4], key_bias=t[5])

    def compacted(*t: Tensor) -> Tensor:
        return ops.active_row_attention(*t[:6], key_padding_mask=t[6])

    ways = {
        "heads": [1, 1, 1, None, None, None],
        "batch": [0] * 6,
        "length": [2, 2, 2, 1, 1, 1],
    }
    yield "queries", (padded, (q, k, v, rows, padding, bias), {}, ways)
    shared = {"heads": [1, 1, 1, None], "batch": [0, 0, 0, None]}
    yield "queries, one set of rows", (attention, (q, k, v, flat), {"window": 3}, shared)
    compact = (drawn(2, 4, 3, 8), drawn(2, 2, 3, 8), drawn(2, 2, 3, 8))
    ways = {"heads": [1, 1, 1, 1, 1, None, None], "batch": [0] * 7}
    yield "rows", (compacted, (*compact, k, v, rows, padding), {}, ways)
    one = (drawn(2, 3, 9, 8), drawn(2, 1, 9, 8), drawn(2, 1, 9, 8))
    yield "heads that two ranks cannot share", (attention, (*one, flat), {}, shared)


def sharded_attention(mesh: DeviceMesh, *together: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Largest errors of outputs and gradients on DTensors, and how the outputs lie.

    Args:
        together: ways to shard, one per dimension of the mesh; by default each of them.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, (function, tensors, options, ways) in attention_calls():
        leaves = [t.clone().requires_grad_(k < 3) for k, t in enumerate(tensors)]
        out = function(*leaves, **options)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        grads = torch.autograd.grad((out * weight).sum(), leaves[:3])
        for chosen in together or [(way,) for way in ways]:
            along = zip(*(ways[way] for way in chosen), strict=True)
            spread = [
                distribute_tensor(t, mesh, _placements(*dims)).requires_grad_(k < 3)
                for k, (t, dims) in enumerate(zip(tensors, along, strict=True))
            ]
            result = function(*spread, **options)
            over = distribute_tensor(weight, mesh, result.placements)
            theirs = torch.autograd.grad((result * over).sum(), spread[:3])
            pairs = [(result, out), *zip(theirs, grads, strict=True)]
            found[f"{name}, {' and '.join(chosen)}"] = {
                "placement": " ".join(map(str, result.placements)),
                "error": max(float((_full(a) - b).detach().abs().max()) for a, b in pairs),
            }
    return found


def sharded_vocabulary(mesh: DeviceMesh) -> dict[str, float]:
    """Largest errors of the row-wise ops, and of the products, on DTensors."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 11, dtype=torch.float64, generator=generator)
    hidden = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    weight = torch.randn(11, 5, dtype=torch.float64, generator=generator)

    def error(call: Callable[..., Tensor], x: Tensor, other: Tensor, *along: int | None) -> float:
        leaf = x.clone().requires_grad_()
        expected = call(leaf, other)
        (grad,) = torch.autograd.grad(expected.sum(), leaf)
        place = [_placements(dim) for dim in along]
        spread = distribute_tensor(x, mesh, place[0]).requires_grad_()
        got = call(spread, distribute_tensor(other, mesh, place[1]))
        (theirs,) = torch.autograd.grad(got.sum(), spread)
        off = (_full(got) - expected).detach().abs().max(), (_full(theirs) - grad).abs().max()
        return float(torch.stack(off).max())

    def entropy(x: Tensor, _: Tensor) -> Tensor:
        return ops.entropy_stats(x).entropy

    def head(x: Tensor, w: Tensor) -> Tensor:
        return ops.linear_entropy(x, w).entropy

    return {
        "entropy_stats": error(entropy, logits, logits, 0, None),
        "linear_entropy": error(head, hidden, weight, 0, None),
        "linear_entropy, vocabulary": error(head, hidden, weight, None, 0),
        "frozen_linear, columns": error(ops.frozen_linear, hidden, weight, None, 0),
        "frozen_linear, sum": error(ops.frozen_linear, hidden, weight, 1, 1),
        "frozen_linear, rows": error(ops.frozen_linear, hidden, weight, 0, None),
    }


def sharded_constants(mesh: DeviceMesh) -> dict[str, dict[str, Any]]:
    """The same of ops that have no derivative, or a trivial one; and how their results lie."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def mass(*t: Tensor) -> Tensor:
        return ops.attention_mass(*t[:3], row_idx=t[3])

    def written(*t: Tensor) -> Tensor:
        return ops.inject_soft_embeddings(*t, alpha=0.5, is_logits=True)

    def scores(*t: Tensor) -> Tensor:
        return ops.tis_scores(*t, vocabulary=11, penalty=0.5, floor=0.3).score

    def tokens(*t: Tensor) -> Tensor:
        return ops.sample_tokens(*t, temperature=0.7).token

    rows = torch.tensor([[0, 4, 6], [1, 2, -1]])
    queries = (drawn(2, 4, 3, 8), drawn(2, 2, 9, 8), 3 + drawn(2, 4, 3), rows)
    embeds = (drawn(2, 9, 5), rows, drawn(2, 3, 11), drawn(11, 5), drawn(5))
    candidates = (drawn(2, 3, 5), drawn(2, 3, 5), drawn(2, 9).abs(), rows, drawn(2).abs())
    shared = (*candidates[:3], torch.tensor([1, 5, 2]), candidates[4])
    logits = (drawn(6, 11), torch.arange(6))
    calls: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], list[int | None]]] = {
        "attention_mass, heads": (mass, queries, [1, 1, 1, None]),
        "attention_mass, batch": (mass, queries, [0, 0, 0, 0]),
        "inject_soft_embeddings, batch": (written, embeds, [0, 0, 0, None, None]),
        "tis_scores, batch": (scores, candidates, [0, 0, 0, 0, 0]),
        "tis_scores, one set": (scores, shared, [0, 0, 0, None, 0]),
        "sample_tokens, rows": (tokens, logits, [0, 0]),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, (call, tensors, along) in calls.items():
        # −∞ stands at padded candidates.
        expected = call(*tensors).clamp_min(-99)
        pairs = zip(tensors, along, strict=True)
        got = call(*(distribute_tensor(t, mesh, _placements(dim)) for t, dim in pairs))
        found[name] = {
            "placement": str(got.placements[0]),
            "error": float((_full(got).clamp_min(-99) - expected).abs().max()),
            "size": float(expected.abs().max()),
        }
    return found


def _placements(*dims: int | None) -> list[Placement]:
    return [Replicate() if dim is None else Shard(dim) for dim in dims]


def _full(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    register_sharding_rules()
    found = {
        "attention": sharded_attention(mesh),
        "vocabulary": sharded_vocabulary(mesh),
        "constants": sharded_constants(mesh),
        "llada": compared("llada", folder, mesh),
        "dream": compared("dream", folder, mesh),
        "dream in memory": compared("dream", folder, mesh, in_memory=True),
        "sdar": predicted("sdar", folder, mesh, tie_word_embeddings=True),
        "refusals": refusals(folder, mesh),
    }
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
