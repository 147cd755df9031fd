"""Ops called from several threads at once: first calls, caches, and who observes what."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

from boe_kernels import (
    DeferredRows,
    active_query_attention,
    active_row_attention,
    attention_mass,
    entropy_stats,
    inject_soft_embeddings,
    linear_entropy,
    observe_paths,
    sample_tokens,
)
from boe_kernels._dispatch import implementation
from boe_kernels._triton import for_device, recording

THREADS = 8


def at_once(calls: list[Callable[[], object]]) -> list[object]:
    """What the calls return, each in a thread of its own, all begun together."""
    barrier = Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        barrier.wait(timeout=60)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [done.result() for done in [pool.submit(run, call) for call in calls]]


def every_op(seed: int) -> tuple[Tensor, ...]:
    """Results and gradients of the ops on inputs of their own."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    q, k, v = (draw(1, heads, 21, 8).requires_grad_() for heads in (4, 2, 2))
    rows = DeferredRows()
    out = active_query_attention(q, k, v, rows)
    # Another set in every thread, bound to the call of that thread.
    rows.bind(torch.randperm(21, generator=random)[: 3 + seed])
    index = torch.arange(5)
    live = [x.detach()[:, :, index].requires_grad_() for x in (q, k, v)]
    replayed = active_row_attention(*live, k.detach(), v.detach(), index)
    logits = draw(3, 50).requires_grad_()
    hidden = draw(3, 8).requires_grad_()
    stats, head = entropy_stats(logits), linear_entropy(hidden, draw(50, 8))
    seeds = torch.arange(3) + seed
    return (
        *torch.autograd.grad(out.square().sum(), (q, k, v)),
        *torch.autograd.grad(replayed.square().sum(), live),
        *torch.autograd.grad(stats.entropy.sum(), logits),
        *torch.autograd.grad(head.entropy.sum(), hidden),
        sample_tokens(logits.detach(), seeds).token,
        attention_mass(q.detach(), k.detach(), out.detach().logsumexp(dim=-1)),
        inject_soft_embeddings(draw(1, 9, 8), index, draw(1, 5, 50), draw(50, 8), draw(8), 0.5, 4),
    )


def test_first_calls_from_many_threads_give_what_one_thread_gives():
    expected = [every_op(seed) for seed in range(THREADS)]
    for _ in range(3):
        implementation.cache_clear()
        found = at_once([lambda seed=seed: every_op(seed) for seed in range(THREADS)])
        for mine, right in zip(found, expected, strict=True):
            assert all(map(torch.equal, mine, right))


def test_a_thread_observes_its_own_calls_and_no_others():
    barrier = Barrier(2)

    def observed(op: Callable[[], object]) -> list[tuple[str, str]]:
        with observe_paths() as seen:
            barrier.wait(timeout=60)
            op()
            barrier.wait(timeout=60)
        return seen

    logits = torch.randn(2, 9)
    calls = [
        lambda: observed(lambda: entropy_stats(logits)),
        lambda: observed(lambda: sample_tokens(logits, torch.arange(2))),
    ]
    assert [{op for op, _ in seen} for seen in at_once(calls)] == [
        {"entropy_stats"},
        {"sample_tokens"},
    ]


@pytest.mark.parametrize("architecture", ["sm_90", "gfx942"])
def test_a_recording_is_of_its_own_thread(architecture):
    table = {name: name for name in ("sm_80", "sm_90", "gfx942")}
    cpu = torch.device("cpu")
    with recording(architecture):
        inside = for_device(table, cpu)
        (elsewhere,) = at_once([lambda: for_device(table, cpu)])
    assert (inside, elsewhere) == (architecture, "sm_80")
