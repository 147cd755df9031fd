"""Run as a program, without the interpreter: what a warm-up makes, and what calls then need.

Prints as JSON, by architecture, the cache keys of the binaries that :func:`warmup` makes for the
plans below, and those of calls that the plans cover, by the call.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import torch
from launched_attention import HEADS, KV_HEADS, WIDTH, backward, forward, key_bias, mass, replay
from launched_shapes import draw, fused_write, head, score, statistics, write

from bench.binaries import specialisations
from boe_kernels import AttentionPlan, VocabularyPlan
from boe_kernels._warmup import Plan, needed_calls

LENGTH, VOCABULARY, EMBEDDING = 1024, 32000, 64
DENSE, ODD, SMALL = "inject_soft_embeddings", 50257, 999
COUNTS = (1, 8, 16, 17, 31, 32, 33, 48, 64, 65, 100, 129, 333, 512, 1023, 1024)

ATTENTION = AttentionPlan(HEADS, WIDTH, LENGTH, kv_heads=KV_HEADS)
PLANS: tuple[Plan, ...] = (
    ATTENTION,
    AttentionPlan(HEADS, WIDTH, LENGTH, kv_heads=KV_HEADS, ragged=True),
    AttentionPlan(
        HEADS,
        WIDTH,
        LENGTH,
        kv_heads=KV_HEADS,
        grad_rows="keys",
        ops=("active_query_attention",),
    ),
    AttentionPlan(
        HEADS,
        WIDTH,
        LENGTH,
        kv_heads=KV_HEADS,
        biased=True,
        ops=("active_query_attention",),
    ),
    VocabularyPlan(VOCABULARY, EMBEDDING, 1000),
    VocabularyPlan(VOCABULARY, EMBEDDING, 1000, suppressed=2, ops=("entropy_stats",)),
    VocabularyPlan(VOCABULARY, EMBEDDING, 1, dtype=torch.float32, ops=("tis_scores",)),
    VocabularyPlan(ODD, EMBEDDING, 1000, ops=(DENSE,)),
    VocabularyPlan(SMALL, EMBEDDING, 1000, ops=(DENSE,)),
)

CALLS: dict[str, Callable[[], None]] = {
    **{f"forward of {n} canvases": partial(forward, n, LENGTH) for n in (1, 8)},
    **{f"backward, {n} rows": partial(backward, 3, LENGTH, n) for n in COUNTS},
    **{f"backward, sets of {n}": partial(backward, 2, LENGTH, n, shared=False) for n in COUNTS},
    **{f"backward, {n} keys": partial(backward, 1, LENGTH, n, grad_rows="keys") for n in COUNTS},
    "forward with a bias": partial(forward, 2, LENGTH, mask=key_bias(2, LENGTH)),
    **{
        f"backward with a bias, {n} rows": partial(backward, 2, LENGTH, n, mask=key_bias(2, LENGTH))
        for n in COUNTS
    },
    **{f"replay of {n} rows": partial(replay, 2, LENGTH, n) for n in COUNTS},
    **{f"mass of {n} rows": partial(mass, 2, LENGTH, n) for n in COUNTS},
    **{f"statistics of {n} rows": partial(statistics, n, VOCABULARY) for n in (1, 63, 264, 999)},
    "statistics, 2 ids": partial(statistics, 64, VOCABULARY, 2),
    "head": partial(head, 700, VOCABULARY, 524),
    "draws": partial(draw, 33, VOCABULARY, 0.7),
    "soft writes": partial(write, 2, 256, 63, False, 0.3, 64),
    "fused soft writes": partial(fused_write, 2, 256, 63, False, 0.3, VOCABULARY),
    "fused soft writes, odd": partial(fused_write, 2, 256, 32, False, 0.3, ODD),
    "fused soft writes, in one go": partial(fused_write, 2, 256, 63, False, 0.3, SMALL),
    "scores": partial(score, 2, 100, 16, False),
}

UNPLANNED = partial(backward, 2, LENGTH, 1024, shared=False)


def keys(call: Callable[[], None], architecture: str) -> list[str]:
    return sorted({made.key for made in specialisations(call, architecture)})


def warm(plans: tuple[Plan, ...], architecture: str) -> None:
    """Make the calls of a warm-up, which are recorded."""
    chosen = [(plan, op, "triton") for plan in plans for op in plan.ops]
    chosen += [(plan, DENSE, "triton_fused") for plan in plans if DENSE in plan.ops]
    for call in needed_calls(chosen, architecture):
        call(torch.device("meta"))


def describe(architecture: str) -> dict[str, object]:
    return {
        "warm": keys(partial(warm, PLANS, architecture), architecture),
        "calls": {name: keys(call, architecture) for name, call in CALLS.items()},
        "warm, shared sets alone": keys(partial(warm, (ATTENTION,), architecture), architecture),
        "unplanned": keys(UNPLANNED, architecture),
    }


if __name__ == "__main__":
    print(json.dumps({name: describe(name) for name in ("sm_80", "sm_90")}))
