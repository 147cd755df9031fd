"""Tensors whose elements 32 bits cannot count."""

from __future__ import annotations

import pytest
import torch
from dense_attention import assert_as_accurate_as_dense, keep_rows, random_qkv
from test_entropy import assert_matches_categorical
from torch import Tensor

from boe_kernels import (
    active_query_attention,
    entropy_stats,
    inject_soft_embeddings,
    sample_tokens,
)

pytestmark = pytest.mark.device_only

FAR = 1 << 31
GIGABYTE = 1 << 30


def need(gigabytes: float) -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * GIGABYTE:
        pytest.skip(f"needs {gigabytes} GiB of free device memory, there are {free / GIGABYTE:.1f}")


def large_logits(device: torch.device) -> Tensor:
    """(17500, 126464) in bfloat16, the last rows beyond element 2³¹."""
    random = torch.Generator(device).manual_seed(0)
    logits = torch.empty(17_500, 126_464, dtype=torch.bfloat16, device=device)
    for block in logits.split(1000):
        block.normal_(0.0, 3.0, generator=random)
    assert logits.numel() > FAR
    return logits


def test_statistics_and_gradient_of_more_than_2_to_the_31_logits_are_right(device):
    need(12)
    logits = large_logits(device).requires_grad_()
    stats = entropy_stats(logits, backend="triton")
    (gradient,) = torch.autograd.grad(stats.entropy.sum(), logits)
    ends = torch.cat((logits[:4], logits[-4:])).detach()
    assert_matches_categorical(ends, backend="triton")
    leaf = ends.clone().requires_grad_()
    alone = entropy_stats(leaf, backend="triton")
    (expected,) = torch.autograd.grad(alone.entropy.sum(), leaf)
    for whole, part in zip(stats, alone, strict=True):
        torch.testing.assert_close(torch.cat((whole[:4], whole[-4:])), part)
    torch.testing.assert_close(torch.cat((gradient[:4], gradient[-4:])), expected)


def test_draws_from_more_than_2_to_the_31_logits_are_right(device):
    need(8)
    logits = large_logits(device)
    seeds = torch.arange(logits.shape[0], device=device)
    tokens = sample_tokens(logits, seeds, backend="triton").token
    ends = sample_tokens(logits[-50:], seeds[-50:], backend="reference").token
    assert torch.equal(tokens[-50:], ends)


def test_soft_writes_into_a_canvas_beyond_2_to_the_31_elements_are_right(device):
    need(12)
    length, width = 2_100_000, 1024
    embeds = torch.zeros(1, length, width, dtype=torch.bfloat16, device=device)
    assert embeds.numel() > FAR
    random = torch.Generator(device).manual_seed(0)
    table = torch.randn(50, width, generator=random, device=device).bfloat16()
    logits = torch.randn(1, 2, 50, generator=random, device=device)
    rows = torch.tensor([0, length - 1], device=device)
    for top_k, path in ((None, "triton"), (None, "triton_fused"), (4, "triton")):
        inputs = (logits, table, table[0], 0.5, top_k)
        options = {"is_logits": True, "backend": path}
        canvas = inject_soft_embeddings(embeds, rows, *inputs, **options)
        ends = inject_soft_embeddings(
            embeds[:, [0, -1]], torch.tensor([0, 1], device=device), *inputs, **options
        )
        torch.testing.assert_close(canvas[:, [0, -1]], ends)
        assert not canvas[:, 1:-1].any()
        del canvas


def test_fused_soft_writes_of_more_than_2_to_the_31_logits_are_right(device):
    need(8)
    logits = large_logits(device)[None]
    vocabulary, count = logits.shape[-1], logits.shape[1]
    random = torch.Generator(device).manual_seed(0)
    table = torch.randn(vocabulary, 16, generator=random, device=device).bfloat16()
    embeds = torch.zeros(1, count, 16, dtype=torch.bfloat16, device=device)
    rows = torch.arange(count, device=device)

    def write(some: slice) -> Tensor:
        return inject_soft_embeddings(
            embeds[:, some],
            rows[: len(rows[some])],
            logits[:, some],
            table,
            table[0],
            0.5,
            is_logits=True,
            backend="triton_fused",
        )

    canvas = write(slice(None))
    for some in (slice(0, 4), slice(-4, None)):
        assert torch.equal(canvas[:, some], write(some))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("far", ["batch", "head", "row"])
def test_strides_beyond_2_to_the_31_elements_are_followed(far, dtype, device):
    need(12)
    batch, heads, length, width = 2, 2, 65, 64
    steps = {
        "batch": (FAR + 64, length * width, width, 1),
        "head": (width, FAR + 64, 2 * width, 1),
        "row": (width, 2 * width, (FAR // (length - 1) // 64 + 1) * 64, 1),
    }[far]
    drawn = random_qkv(batch, (heads, heads), length, width=width, dtype=dtype)
    tensors = [x.to(device) for x in drawn]
    # One allocation, in which nothing but these tensors is a number.
    extent = sum((n - 1) * step for n, step in zip(tensors[0].shape, steps, strict=True)) + 1
    assert extent > FAR
    gap = 4 * 64 * 1024
    memory = torch.full((extent + 4 * gap,), torch.nan, dtype=dtype, device=device)
    spread = []
    for number, x in enumerate(tensors):
        placed = memory.as_strided(x.shape, steps, number * gap)
        placed.copy_(x)
        spread.append(placed)
    for x, placed in zip(tensors, spread, strict=True):
        assert torch.equal(x, placed), "the tensors lie in each other's way"
    rows = torch.tensor([64, 3, 40, 0, 17], device=device)
    leaves = [x.detach().requires_grad_() for x in spread[:3]]
    out = active_query_attention(*leaves, rows, backend="triton")
    gradients = torch.autograd.grad(out, leaves, spread[3])
    *inputs, grad = tensors
    assert_as_accurate_as_dense((out.detach(), *gradients), tuple(inputs), keep_rows(grad, rows))
