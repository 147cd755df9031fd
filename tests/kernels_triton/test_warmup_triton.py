"""A warm-up makes every binary that the calls which it was told of need, and few others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from uninterpreted import told_by
from warmed_binaries import CALLS

from boe_kernels import (
    AttentionPlan,
    VocabularyPlan,
    active_query_attention,
    active_row_attention,
    entropy_stats,
    inject_soft_embeddings,
    warmup,
)
from boe_kernels._triton import ARCHITECTURES, recording
from boe_kernels._warmup import needed_calls

HEADS, WIDTH, LENGTH, VOCABULARY = 2, 16, 33, 40


# --- binaries, as Triton's cache knows them -----------------------------------------


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """What ``warmed_binaries`` tells, found without the interpreter."""
    return told_by("warmed_binaries.py")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_planned_calls_of_any_size_need_no_other_binary(architecture, described):
    found = described[architecture]
    assert set(found["calls"]) == set(CALLS)
    for call, needed in found["calls"].items():
        assert needed, call
        assert set(needed) <= set(found["warm"]), call


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_what_was_not_planned_does_need_another_binary(architecture, described):
    # Or the test above could not fail.
    found = described[architecture]
    assert not set(found["unplanned"]) <= set(found["warm, shared sets alone"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_most_numbers_of_active_rows_need_no_call_of_their_own(architecture):
    plan = AttentionPlan(28, 128, 1024, kv_heads=4)
    assert len(needed_calls([(plan, op, "triton") for op in plan.ops], architecture)) < 20


# --- running ------------------------------------------------------------------------


def query(active: int) -> None:
    q, k = torch.randn(1, HEADS, LENGTH, WIDTH), torch.randn(1, 1, LENGTH, WIDTH)
    q.requires_grad_()
    active_query_attention(q, k, k, torch.arange(active), backend="triton").pow(2).sum().backward()


def replay(active: int) -> None:
    q, live = torch.randn(1, HEADS, active, WIDTH), torch.randn(1, 1, active, WIDTH)
    frozen = torch.randn(1, 1, LENGTH, WIDTH)
    q.requires_grad_()
    rows = torch.arange(active)
    out = active_row_attention(q, live, live, frozen, frozen, rows, backend="triton")
    out.pow(2).sum().backward()


def statistics(rows: int) -> None:
    logits = torch.randn(rows, VOCABULARY, requires_grad=True)
    entropy_stats(logits, backend="triton").entropy.pow(2).sum().backward()


def soft_write(rows: int, top_k: int | None = 4, path: str = "triton") -> None:
    canvas, table = torch.randn(1, LENGTH, WIDTH), torch.randn(VOCABULARY, WIDTH)
    logits = torch.randn(1, rows, VOCABULARY)
    options = {"alpha": 0.5, "top_k": top_k, "is_logits": True, "backend": path}
    inject_soft_embeddings(canvas, torch.arange(rows), logits, table, table[0], **options)


fused_write = partial(soft_write, top_k=None, path="triton_fused")
ATTENTION = AttentionPlan(HEADS, WIDTH, LENGTH, kv_heads=1, dtype=torch.float32, active=(3, 33))
EMBEDDINGS = VocabularyPlan(VOCABULARY, WIDTH, 5, dtype=torch.float32, top_k=4)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("plan", "op", "path", "call", "sizes"),
    [
        (ATTENTION, "active_query_attention", "triton", query, (2, 33)),
        (ATTENTION, "active_row_attention", "triton", replay, (2, 33)),
        (EMBEDDINGS, "entropy_stats", "triton", statistics, (1, 4)),
        (EMBEDDINGS, "inject_soft_embeddings(top_k)", "triton", soft_write, (1, 3)),
        (EMBEDDINGS, "inject_soft_embeddings", "triton_fused", fused_write, (1, 3)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_after_a_warm_up_the_public_functions_launch_nothing_new(
    plan: Any, op: str, path: str, call: Callable[[int], None], sizes: tuple[int, ...]
) -> None:
    with recording("sm_80", run=True) as warmed:
        report = warmup(replace(plan, ops=(op,)), device="cpu", backend=path)
    known = {launch.signature for launch in warmed}
    assert len(report.binaries) == len(known) > 0
    # The interpreter compiles nothing.
    assert report.compiled == 0
    assert [str(decision) for decision in report.decisions] == [f"{op}: {path}"]
    with recording("sm_80", run=True) as launches:
        for size in sizes:
            call(size)
    assert launches
    assert {launch.signature for launch in launches} <= known


@pytest.mark.usefixtures("interpreted")
def test_a_recording_that_runs_gives_the_results():
    x = torch.randn(3, VOCABULARY)
    plain = entropy_stats(x, backend="triton").entropy
    with recording("sm_80", run=True) as launches:
        recorded = entropy_stats(x, backend="triton").entropy
    assert launches
    assert torch.equal(recorded, plain)
