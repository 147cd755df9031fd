"""Calls of the vocabulary launchers that must need the same binaries, by name of the group.

Run as a program, without the interpreter: prints as JSON, for every call, the cache keys of
its launches and the integer arguments that 32 bits cannot hold, with their types.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import torch
from launched_attention import ATTENTION_GROUPS
from torch import Tensor

from bench.binaries import specialisations
from boe_kernels.entropy import triton as entropy
from boe_kernels.head_entropy import triton as head_entropy
from boe_kernels.soft_embedding import triton as soft_embedding
from boe_kernels.soft_embedding import triton_fused as fused_soft_embedding
from boe_kernels.tis_scores import triton as scores
from boe_kernels.token_sampling import triton as token_sampling

ARCHITECTURE = "sm_90"


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def statistics(rows: int, vocabulary: int, suppressed: int = 0, apart: int | None = None) -> None:
    logits = meta(1).as_strided((rows, vocabulary), (apart or vocabulary, 1))
    ids = meta(suppressed, dtype=torch.int64) if suppressed else None
    entropy.forward(logits, ids)
    row = meta(rows, dtype=torch.float32)
    entropy.backward(row, logits, row, row, ids)


def head(rows: int, vocabulary: int, block_rows: int) -> None:
    hidden, weight = meta(rows, 64), meta(vocabulary, 64)
    head_entropy.forward(hidden, weight, None, None, block_rows * vocabulary, True)


def draw(rows: int, vocabulary: int, temperature: float) -> None:
    seeds = meta(rows, dtype=torch.int64)
    token_sampling.forward(meta(rows, vocabulary), seeds, temperature, None)


def write(batch: int, length: int, rows: int, shared: bool, alpha: float, top_k: int) -> None:
    at = meta(1 if shared else batch, rows, dtype=torch.int64)
    table, logits = meta(32000, 64), meta(batch, rows, 32000)
    inputs = (meta(batch, length, 64), at, logits, table, table[0], alpha)
    soft_embedding.forward(*inputs, None, True)
    soft_embedding.forward(*inputs, top_k, True)


def fused_write(
    batch: int,
    length: int,
    rows: int,
    shared: bool,
    alpha: float,
    vocabulary: int,
    apart: int | None = None,
) -> None:
    at = meta(1 if shared else batch, rows, dtype=torch.int64)
    apart = apart or vocabulary
    logits = meta(1).as_strided((batch, rows, vocabulary), (rows * apart, apart, 1))
    table = meta(vocabulary, 64)
    inputs = (meta(batch, length, 64), at, logits, table, table[0], alpha, None)
    for is_logits in (True, False):
        fused_soft_embedding.forward(*inputs, is_logits)


def score(batch: int, positions: int, count: int, shared: bool) -> None:
    g = meta(batch, count, 64, dtype=torch.float32)
    candidates = meta(1 if shared else batch, count, dtype=torch.int64)
    h = meta(batch, positions, dtype=torch.float32)
    scores.forward(g, g, h, candidates, h[:, 0], 32000, "none", 0.0, 0.0, False, "none")


Calls = list[Callable[[], None]]

GROUPS: dict[str, Calls] = {
    **ATTENTION_GROUPS,
    "few rows, even vocabularies": [
        partial(statistics, rows, vocabulary)
        for rows in (1, 2, 63, 200)
        for vocabulary in (16384, 32000, 126464, 152064)
    ],
    "many rows": [partial(statistics, rows, 126464) for rows in (264, 1000, 4096)],
    "rows further apart than 32 bits can count": [
        partial(statistics, 64, 126464, apart=apart) for apart in (126464, 1 << 20, 1 << 33)
    ],
    "odd vocabularies": [
        partial(statistics, rows, vocabulary)
        for rows in (1, 64)
        for vocabulary in (30522, 50257, 50258, 126349)
    ],
    "many suppressed ids": [partial(statistics, 64, 126464, count) for count in (5, 115, 1000)],
    "blocks of a head, the last one smaller": [
        partial(head, rows, 32000, block_rows)
        for rows, block_rows in ((7, 7), (7, 3), (100, 33), (64, 1))
    ],
    "draws": [
        partial(draw, rows, vocabulary, temperature)
        for rows, vocabulary, temperature in ((1, 32000, 1.0), (64, 126464, 0.3), (999, 32000, 2.0))
    ],
    "soft writes": [
        partial(write, 1, 256, 64, True, 0.5, 64),
        partial(write, 2, 256, 64, False, 0.0, 63),
        partial(write, 3, 100, 1, False, 1.0, 1),
        partial(write, 3, 1, 1, True, 0.1, 1),
    ],
    "fused soft writes": [
        partial(fused_write, batch, length, rows, shared, alpha, vocabulary)
        for batch, length, rows, shared, alpha, vocabulary in (
            (1, 256, 64, True, 0.5, 32000),
            (2, 256, 63, False, 0.0, 126464),
            (3, 100, 1, False, 1.0, 2048),
            (3, 1, 1, True, 0.1, 152064),
            (2, 999, 333, True, 0.1, 32000),
        )
    ],
    # A batch of 16 odd rows is 16 bytes long: nothing may depend on that.
    "fused soft writes, odd vocabularies": [
        partial(fused_write, batch, 256, rows, False, 0.5, vocabulary)
        for batch, rows in ((1, 1), (1, 64), (2, 1), (2, 16), (3, 63))
        for vocabulary in (50257, 2049)
    ],
    "fused soft writes, in one go": [
        partial(fused_write, batch, 256, rows, False, 0.5, vocabulary)
        for batch, rows in ((1, 1), (2, 64), (3, 200))
        for vocabulary in (512, 1024)
    ],
    "fused soft writes, logits further apart than 32 bits can count": [
        partial(fused_write, 2, 256, 3, False, 0.5, 32000, apart) for apart in (32000, 1 << 33)
    ],
    "scores": [
        partial(score, 1, 256, 64, True),
        partial(score, 2, 1, 1, False),
        partial(score, 3, 100, 16, False),
        partial(score, 3, 33, 17, True),
    ],
}


def describe(call: Callable[[], None]) -> dict[str, list[str]]:
    launches = specialisations(call, ARCHITECTURE)
    return {
        "keys": sorted({launch.key for launch in launches}),
        "large": sorted(
            f"{launch.key.split(':')[0]}, {name}: {kind}"
            for launch in launches
            for name, (value, kind) in launch.integers.items()
            if value >= 1 << 31
        ),
    }


if __name__ == "__main__":
    print(json.dumps({name: list(map(describe, calls)) for name, calls in GROUPS.items()}))
