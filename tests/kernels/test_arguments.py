"""Bad arguments are refused with the right exception and the argument's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from boe_kernels import (
    active_query_attention,
    active_query_backward,
    active_query_forward,
    active_row_attention,
    entropy_stats,
    inject_soft_embeddings,
    linear_entropy,
)

B, HQ, HKV, L, LK, D, A, V = 2, 4, 2, 6, 6, 8, 3, 10
INT = torch.int64


def on_meta(x: Tensor) -> Tensor:
    return x.to("meta")


def good_query() -> dict[str, Any]:
    keys = torch.randn(2, B, HKV, LK, D)
    rows = torch.tensor([0, 2])
    return {"q": torch.randn(B, HQ, L, D), "k": keys[0], "v": keys[1], "active_idx": rows}


def good_backward() -> dict[str, Any]:
    good = good_query()
    out, lse = active_query_forward(good["q"], good["k"], good["v"], backend="library")
    return {"dout": torch.randn(B, HQ, L, D), **good, "out": out, "lse": lse}


def good_row() -> dict[str, Any]:
    return {
        "q_rows": torch.randn(B, HQ, A, D),
        "k_rows": torch.randn(B, HKV, A, D),
        "v_rows": torch.randn(B, HKV, A, D),
        "k": torch.randn(B, HKV, LK, D),
        "v": torch.randn(B, HKV, LK, D),
        "row_idx": torch.tensor([4, 0, 2]),
    }


def good_entropy() -> dict[str, Any]:
    return {"logits": torch.randn(3, V)}


def good_linear() -> dict[str, Any]:
    return {
        "hidden": torch.randn(3, D),
        "weight": torch.randn(V, D),
        "bias": torch.randn(V),
    }


def good_soft() -> dict[str, Any]:
    return {
        "embeds": torch.randn(B, L, D),
        "rows": torch.tensor([4, 0, 2]),
        "probs_or_logits": torch.rand(B, A, V),
        "table": torch.randn(V, D),
        "mask_embed": torch.randn(D),
        "alpha": 0.5,
    }


# What is changed in the good arguments, the exception, and what its message begins with.
Bad = tuple[dict[str, Any], type[Exception], str]

ROW_SETS: dict[str, tuple[Any, type[Exception], str]] = {
    "of int32": (torch.tensor([1, 0, 2], dtype=torch.int32), TypeError, "must be int64"),
    "of floats": (torch.tensor([1.0, 0.0, 2.0]), TypeError, "must be int64"),
    "as a list": ([1, 0, 2], TypeError, "must be a tensor, got list"),
    "as a scalar": (torch.tensor(1), ValueError, r"must have shape \(A,\) or \(B, A\)"),
    "of another batch": (torch.zeros(3, 3, dtype=INT), ValueError, r"must have .* B = 2"),
    "of three dimensions": (torch.zeros(B, 3, 1, dtype=INT), ValueError, "must have shape"),
    "too high": (torch.tensor([0, 1, 6]), IndexError, r"must hold rows in \[0, 6\), got"),
    "-1 shared": (torch.tensor([0, 1, -1]), IndexError, r"must hold rows in \[0, 6\), got"),
    "-2 per canvas": (torch.tensor([[0, 1, 2], [3, -2, -1]]), IndexError, "must hold rows in"),
    "too high per canvas": (torch.tensor([[0, 1, 2], [3, 6, -1]]), IndexError, "must hold rows"),
    "twice": (torch.tensor([2, 1, 2]), ValueError, "must not name a row twice, got 2 more than"),
    "twice per canvas": (torch.tensor([[0, 1, 2], [3, 3, -1]]), ValueError, "must not name"),
    "elsewhere": (on_meta(torch.tensor([0, 1, 2])), ValueError, "must be on the device"),
}


def row_sets(name: str) -> dict[str, Bad]:
    return {
        f"{name} {case}": ({name: rows}, error, f"{name} {message}")
        for case, (rows, error, message) in ROW_SETS.items()
    }


def key_padding_masks() -> dict[str, Bad]:
    def mask(value: Any, error: type[Exception], message: str) -> Bad:
        return {"key_padding_mask": value}, error, f"key_padding_mask {message}"

    return {
        "key_padding_mask as a list": mask([True], TypeError, "must be a tensor, got list"),
        "key_padding_mask of floats": mask(
            torch.ones(B, LK),
            TypeError,
            "must be bool, got torch.float32: an additive mask is a key_bias",
        ),
        "key_padding_mask of integers": mask(torch.ones(B, LK).long(), TypeError, "must be bool"),
        "key_padding_mask too short": mask(
            torch.ones(B, LK - 1, dtype=torch.bool), ValueError, r"must have shape \(B, Lk\)"
        ),
        "key_padding_mask of all pairs": mask(
            torch.ones(B, HQ, L, LK, dtype=torch.bool),
            ValueError,
            "must have .*: masks that differ from query to query or head to head are not supported",
        ),
        "key_padding_mask without batch": mask(
            torch.ones(LK, dtype=torch.bool), ValueError, r"must have shape \(B, Lk\)"
        ),
        "key_padding_mask elsewhere": mask(
            on_meta(torch.ones(B, LK, dtype=torch.bool)), ValueError, "must be on the device of"
        ),
    }


def keys_and_values(query: str) -> dict[str, Bad]:
    """Bad q, k and v of both attention ops; ``query`` is the name of the queries."""
    heads = f"the heads of {query} must be a multiple of those of k"
    same_dtype, same_device = f"must have the dtype of {query}", f"must be on the device of {query}"
    k = torch.randn(B, HKV, LK, D)
    count = L if query == "q" else A
    return {
        f"{query} as a list": ({query: [1.0]}, TypeError, f"{query} must be a tensor, got list"),
        f"{query} of three dimensions": (
            {query: torch.randn(HQ, count, D)},
            ValueError,
            f"{query} must have 4 dimensions",
        ),
        f"{query} of integers": (
            {query: torch.ones(B, HQ, count, D, dtype=INT)},
            TypeError,
            f"{query} must be float64, float32, bfloat16 or float16, got torch.int64",
        ),
        f"{query} complex": (
            {query: torch.ones(B, HQ, count, D, dtype=torch.complex64)},
            TypeError,
            f"{query} must be float64",
        ),
        "k of five dimensions": ({"k": k[None]}, ValueError, "k must have 4 dimensions"),
        "v of two dimensions": ({"v": k[0, 0]}, ValueError, "v must have 4 dimensions"),
        "k of another dtype": ({"k": k.double()}, TypeError, f"k {same_dtype}"),
        "v of another dtype": ({"v": k.half()}, TypeError, f"v {same_dtype}"),
        "k elsewhere": ({"k": on_meta(k)}, ValueError, f"k {same_device}"),
        "v elsewhere": ({"v": on_meta(k)}, ValueError, f"v {same_device}"),
        "k of another batch": ({"k": k[:1]}, ValueError, "k must have the batch 2"),
        "k of another width": ({"k": k[..., :7]}, ValueError, "k must have the batch 2 and head d"),
        "v of another length": ({"v": k[:, :, :5]}, ValueError, "v must have shape that of k"),
        "v of other heads": ({"v": k[:, :1]}, ValueError, "v must have shape that of k"),
        "heads that do not divide": (
            {"k": (k3 := torch.randn(B, 3, LK, D)), "v": k3},
            ValueError,
            heads,
        ),
        "no key heads": ({"k": k[:, :0], "v": k[:, :0]}, ValueError, heads),
        "window of a fraction": (
            {"window": 1.5},
            TypeError,
            "window must be an int, got fl",
        ),
        "scale not a number": (
            {"scale": float("nan")},
            ValueError,
            "scale must be finite, got nan",
        ),
        "scale as text": ({"scale": "a"}, TypeError, "scale must be a number, got str"),
        "scale as a tensor": (
            {"scale": torch.ones((), requires_grad=True)},
            TypeError,
            "scale must be a number, got Tensor",
        ),
        "window as a bool": ({"window": True}, TypeError, "window must be an int, got bool"),
        "window too long": ({"window": 2**63}, ValueError, r"window must be below 2\*\*63, got 9"),
        "window negative": ({"window": -1}, ValueError, "window must be at least 0, got -1"),
        "block empty": ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
    }


def suppressed_ids() -> dict[str, Bad]:
    def ids(value: Any, error: type[Exception], message: str) -> Bad:
        return {"suppressed_ids": value}, error, f"suppressed_ids {message}"

    return {
        "suppressed_ids as a list": ids([1], TypeError, "must be a tensor, got list"),
        "suppressed_ids of int32": ids(torch.tensor([1]).int(), TypeError, "must be int64, got"),
        "suppressed_ids as a mask": ids(torch.ones(V).bool(), TypeError, "must be int64, got"),
        "suppressed_ids of two dimensions": ids(
            torch.tensor([[1]]), ValueError, "must have 1 dimensions, got shape"
        ),
        "suppressed_ids too high": ids(
            torch.tensor([0, V]), IndexError, r"must hold ids in \[0, 10"
        ),
        "suppressed_ids negative": ids(torch.tensor([-1]), IndexError, r"must hold ids in \[0, 10"),
        "suppressed_ids elsewhere": ids(
            on_meta(torch.tensor([1])), ValueError, "must be on the device of"
        ),
    }


def query_attention() -> dict[str, Bad]:
    no_width = torch.randn(B, HKV, LK, 0)
    masks = {
        "active_idx a mask too long": torch.ones(L + 1, dtype=torch.bool),
        "active_idx a mask of another batch": torch.ones(3, L, dtype=torch.bool),
        "active_idx a mask as a scalar": torch.tensor(True),
    }
    other_keys = torch.randn(B, HKV, LK - 1, D)
    return {
        **keys_and_values("q"),
        **key_padding_masks(),
        **row_sets("active_idx"),
        **{
            name: ({"active_idx": mask}, ValueError, r"bool active_idx must have shape \(L,\)")
            for name, mask in masks.items()
        },
        "a window over other keys": (
            {"k": other_keys, "v": other_keys, "window": 2},
            ValueError,
            "window needs as many keys as queries, got Lk = 5 and L = 6",
        ),
        "no width": (
            {"q": torch.randn(B, HQ, L, 0), "k": no_width, "v": no_width},
            ValueError,
            "the head dimension of q must be positive",
        ),
    }


def query_backward() -> dict[str, Bad]:
    out, lse = torch.randn(B, HQ, L, D), torch.randn(B, HQ, L)
    bad: dict[str, Bad] = {}
    for name in ("dout", "out"):
        bad |= {
            f"{name} as a list": ({name: [1.0]}, TypeError, f"{name} must be a tensor"),
            f"{name} of another dtype": ({name: out.half()}, TypeError, f"{name} must have the d"),
            f"{name} of fewer rows": ({name: out[:, :, :2]}, ValueError, f"{name} must have shape"),
        }
    return bad | {
        "lse as a list": ({"lse": [1.0]}, TypeError, "lse must be a tensor"),
        "lse of fewer rows": ({"lse": lse[..., :2]}, ValueError, "lse must have shape"),
        "lse elsewhere": ({"lse": on_meta(lse)}, ValueError, "lse must be on the device of q"),
        **{
            f"lse of {dtype}": (
                {"lse": lse.to(dtype)},
                TypeError,
                f"lse must be torch.float32 for torch.float32 queries, got {dtype}",
            )
            for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int32)
        },
    }


def row_attention() -> dict[str, Bad]:
    live = torch.randn(B, HKV, A, D)
    bad: dict[str, Bad] = {
        **keys_and_values("q_rows"),
        **key_padding_masks(),
        **row_sets("row_idx"),
        "row_idx as a mask": (
            {"row_idx": torch.ones(LK, dtype=torch.bool)},
            TypeError,
            "row_idx must be int64, got torch.bool",
        ),
        "row_idx too short": (
            {"row_idx": torch.tensor([0, 1])},
            ValueError,
            "row_idx must name the 3 rows of q_rows",
        ),
        "row_idx too long": (
            {"row_idx": torch.tensor([[0, 1, 2, 3], [0, 1, 2, -1]])},
            ValueError,
            "row_idx must name the 3 rows of q_rows",
        ),
    }
    for name in ("k_rows", "v_rows"):
        shape = rf"{name} must have shape \(B, Hkv, A, D\) = \(2, 2, 3, 8\)"
        bad |= {
            f"{name} as a list": ({name: [1.0]}, TypeError, f"{name} must be a tensor"),
            f"{name} of three dimensions": ({name: live[0]}, ValueError, f"{name} must have 4 dim"),
            f"{name} of another dtype": (
                {name: live.double()},
                TypeError,
                f"{name} must have the d",
            ),
            f"{name} elsewhere": (
                {name: on_meta(live)},
                ValueError,
                f"{name} must be on the device",
            ),
            f"{name} of fewer rows": ({name: live[:, :, :2]}, ValueError, shape),
            f"{name} of other heads": ({name: live[:, :1]}, ValueError, shape),
            f"{name} of another batch": ({name: live[:1]}, ValueError, shape),
            f"{name} of another width": ({name: live[..., :7]}, ValueError, shape),
        }
    return bad


def entropy() -> dict[str, Bad]:
    vocabulary = "logits must have a vocabulary dimension of at least 1"
    return {
        **suppressed_ids(),
        "logits as a list": ({"logits": [0.0]}, TypeError, "logits must be a tensor, got list"),
        "logits of integers": (
            {"logits": torch.ones(3, V, dtype=INT)},
            TypeError,
            "logits must be float64, float32, bfloat16 or float16, got torch.int64",
        ),
        "logits as a scalar": ({"logits": torch.tensor(1.0)}, ValueError, vocabulary),
        "zero vocabulary": ({"logits": torch.randn(3, 0)}, ValueError, vocabulary),
    }


def linear() -> dict[str, Bad]:
    weight = torch.randn(V, D)
    return {
        **suppressed_ids(),
        "hidden as a list": ({"hidden": [0.0]}, TypeError, "hidden must be a tensor, got list"),
        "hidden of integers": ({"hidden": torch.ones(3, D).int()}, TypeError, "hidden must be fl"),
        "hidden as a scalar": (
            {"hidden": torch.tensor(1.0)},
            ValueError,
            "hidden must have at least 1 dimension",
        ),
        "hidden of another width": (
            {"hidden": torch.randn(3, D + 1)},
            ValueError,
            r"weight must have shape \(V, D\) with V > 0 and D = 9, got \(10, 8\)",
        ),
        "weight as a list": ({"weight": [0.0]}, TypeError, "weight must be a tensor, got list"),
        "weight of one dimension": ({"weight": weight[0]}, ValueError, "weight must have 2 dim"),
        "weight of another dtype": ({"weight": weight.half()}, TypeError, "weight must have the d"),
        "weight elsewhere": (
            {"weight": on_meta(weight)},
            ValueError,
            "weight must be on the device",
        ),
        "zero vocabulary": (
            {"weight": weight[:0], "bias": None},
            ValueError,
            r"weight must have shape \(V, D\) with V > 0",
        ),
        "bias as a number": ({"bias": 0.5}, TypeError, "bias must be a tensor, got float"),
        "bias of another dtype": (
            {"bias": torch.randn(V).double()},
            TypeError,
            "bias must have the",
        ),
        "bias elsewhere": (
            {"bias": on_meta(torch.randn(V))},
            ValueError,
            "bias must be on the dev",
        ),
        "bias of another size": ({"bias": torch.randn(V - 1)}, ValueError, "bias must have shape"),
        "bias of two dimensions": ({"bias": torch.randn(1, V)}, ValueError, "bias must have shape"),
        "block_elements 0": (
            {"block_elements": 0},
            ValueError,
            "block_elements must be at least 1",
        ),
        "weight with a gradient": (
            {"weight": weight.clone().requires_grad_()},
            ValueError,
            "(weight|bias) must not require a gradient",
        ),
    }


def soft() -> dict[str, Bad]:
    embeds, table, p = torch.randn(B, L, D), torch.randn(V, D), torch.rand(B, A, V)
    mask_embed = torch.randn(D)
    p_shape = r"probs_or_logits must have shape \(B, R, V\) = \(2, 3, 10\)"
    return {
        **row_sets("rows"),
        "rows as a mask": (
            {"rows": torch.ones(L, dtype=torch.bool)},
            TypeError,
            "rows must be int64, got torch.bool",
        ),
        "embeds of two dimensions": ({"embeds": embeds[0]}, ValueError, "embeds must have 3 dim"),
        "embeds of integers": ({"embeds": embeds.int()}, TypeError, "embeds must be float64"),
        "embeds as a list": ({"embeds": [0.0]}, TypeError, "embeds must be a tensor, got list"),
        "table as a list": ({"table": [0.0]}, TypeError, "table must be a tensor, got list"),
        "table of one dimension": ({"table": table[0]}, ValueError, "table must have 2 dimensions"),
        "table of another dtype": ({"table": table.half()}, TypeError, "table must have the dtype"),
        "table elsewhere": ({"table": on_meta(table)}, ValueError, "table must be on the device"),
        "table of another width": ({"table": table[:, :7]}, ValueError, "table must have shape"),
        "p as a list": (
            {"probs_or_logits": [0.0]},
            TypeError,
            "probs_or_logits must be a tensor, got list",
        ),
        "p of integers": (
            {"probs_or_logits": p.int()},
            TypeError,
            "probs_or_logits must be float64",
        ),
        "p elsewhere": (
            {"probs_or_logits": on_meta(p)},
            ValueError,
            "probs_or_logits must be on the device of embeds",
        ),
        "p of fewer rows": ({"probs_or_logits": p[:, :2]}, ValueError, p_shape),
        "p of another vocabulary": ({"probs_or_logits": p[..., :9]}, ValueError, p_shape),
        "p without batch": ({"probs_or_logits": p[0]}, ValueError, p_shape),
        "mask_embed as a list": ({"mask_embed": [0.0]}, TypeError, "mask_embed must be a tensor"),
        "mask_embed of another dtype": (
            {"mask_embed": mask_embed.double()},
            TypeError,
            "mask_embed must have the dtype of embeds",
        ),
        "mask_embed elsewhere": (
            {"mask_embed": on_meta(mask_embed)},
            ValueError,
            "mask_embed must be on the device of embeds",
        ),
        "mask_embed of another width": (
            {"mask_embed": mask_embed[:7]},
            ValueError,
            r"mask_embed must have shape \(D,\) = \(8,\)",
        ),
        "mask_embed of two dimensions": (
            {"mask_embed": mask_embed[None]},
            ValueError,
            r"mask_embed must have shape \(D,\) = \(8,\)",
        ),
        "alpha not finite": ({"alpha": float("inf")}, ValueError, "alpha must be finite, got inf"),
        "top_k 0": ({"top_k": 0}, ValueError, "top_k must be between 1 and V = 10, got 0"),
        "top_k negative": ({"top_k": -3}, ValueError, "top_k must be between 1 and V = 10, got -3"),
        "top_k too high": ({"top_k": 11}, ValueError, "top_k must be between 1 and V = 10, got 11"),
    }


FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]], dict[str, Bad]]] = {
    "active_query_attention": (active_query_attention, good_query, query_attention()),
    "active_query_backward": (active_query_backward, good_backward, query_backward()),
    "active_row_attention": (active_row_attention, good_row, row_attention()),
    "entropy_stats": (entropy_stats, good_entropy, entropy()),
    "linear_entropy": (linear_entropy, good_linear, linear()),
    "inject_soft_embeddings": (inject_soft_embeddings, good_soft, soft()),
}
CASES = [(function, case) for function, (_, _, bad) in FUNCTIONS.items() for case in bad]


@pytest.mark.parametrize(("function", "case"), CASES, ids=[f"{f}, {c}" for f, c in CASES])
def test_a_bad_argument_is_refused_by_name(function, case):
    call, good, bad = FUNCTIONS[function]
    changes, error, message = bad[case]
    with pytest.raises(error, match=f"^{message}"):
        call(**good() | changes)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("backend", ["auto", "library", "reference"])
def test_the_good_arguments_that_the_bad_ones_differ_from_are_accepted(backend, function):
    call, good, _ = FUNCTIONS[function]
    if (backend, function) == ("reference", "active_query_backward"):
        pytest.skip("the reference has no backward of its own")
    result = call(**good(), backend=backend)
    results = result if isinstance(result, tuple) else (result,)
    assert all(x.isfinite().all() for x in results)
