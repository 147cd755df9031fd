"""The attention of a replay on a GPU: active rows against a frozen canvas, and which rows."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.gpu.benchmark import Benchmark
from bench.gpu.op_case import Function, OpCase, Tensors, everything, measure
from bench.gpu.roofline import Work
from boe_kernels import active_row_attention, attention_mass

NAME, MASS = "row_attention", "attention_mass"


def merged(
    q_rows: Tensor, k_rows: Tensor, v_rows: Tensor, k: Tensor, v: Tensor, rows: Tensor
) -> Tensors:
    """Live keys and values merged into copies by ``index_copy``, then PyTorch's attention."""
    keys, values = k.index_copy(2, rows, k_rows), v.index_copy(2, rows, v_rows)
    grouped = q_rows.shape[1] != k.shape[1]
    return (scaled_dot_product_attention(q_rows, keys, values, enable_gqa=grouped),)


def _case(
    dtype: torch.dtype,
    length: int,
    active: int,
    heads: tuple[int, int],
    width: int,
    batch: int = 1,
) -> OpCase:
    def ours(backend: str) -> Function:
        return lambda *inputs: (active_row_attention(*inputs, backend=backend),)

    q_heads, kv_heads = heads
    size = dtype.itemsize
    queries = batch * q_heads * active * width * size
    frozen, live = (batch * kv_heads * rows * width * size for rows in (length, active))
    products = 2 * batch * q_heads * active * length * width
    forward = Work(2 * queries + 2 * frozen, 2 * products, dtype)
    # dq needs all keys; dk and dv those of the live rows.
    live_products = 2 * batch * q_heads * active * active * width
    backward = Work(4 * queries + 2 * frozen + 2 * live, 3 * products + 2 * live_products, dtype)
    group = q_heads // kv_heads

    def part(inputs: Tensors) -> Tensors:
        """The first key head of the first sequence, with its query heads."""
        q_rows, k_rows, v_rows, k, v, rows, upstream = inputs
        keys = (x[:1, :1] for x in (k_rows, v_rows, k, v))
        return q_rows[:1, :group], *keys, rows, upstream[:1, :group]

    def part_of_result(result: Tensor) -> Tensor:
        return result[:1, : group if result.shape[1] == q_heads else 1]

    config: dict[str, int | str] = {
        "B": batch,
        "H": q_heads,
        "Hkv": kv_heads,
        "d": width,
        "L": length,
        "A": active,
    }
    return OpCase(
        NAME,
        dtype,
        config,
        partial(_draw, dtype, length, active, heads, width, batch),
        leaves=3,
        functions={"ours": ours("triton"), "library": ours("library"), "merged": merged},
        truth=ours("reference"),
        part=part,
        part_of_result=part_of_result,
        work={"forward": (forward,), "backward": (backward,)},
    )


def _draw(
    dtype: torch.dtype,
    length: int,
    active: int,
    heads: tuple[int, int],
    width: int,
    batch: int,
    device: torch.device,
) -> Tensors:
    random = torch.Generator(device).manual_seed(0)

    def draw(count: int, rows: int) -> Tensor:
        shape = (batch, count, rows, width)
        return torch.randn(shape, generator=random, device=device).to(dtype)

    rows = torch.randperm(length, generator=random, device=device)[:active]
    q_heads, kv_heads = heads
    live = (draw(q_heads, active), draw(kv_heads, active), draw(kv_heads, active))
    return *live, draw(kv_heads, length), draw(kv_heads, length), rows, draw(q_heads, active)


def sweep(toy: bool) -> list[OpCase]:
    if toy:
        return [_case(torch.float32, 24, 5, (4, 2), 16)]
    return [
        _case(torch.bfloat16, length, active, heads, 128)
        for heads in ((32, 32), (28, 4))
        for length in (1024, 4096)
        for active in (16, 64, 128, 256, 512)
    ]


# --- attention_mass -----------------------------------------------------------------


def _mass_case(
    dtype: torch.dtype, length: int, count: int, heads: tuple[int, int], width: int
) -> OpCase:
    q_heads, kv_heads = heads
    group = q_heads // kv_heads

    def ours(backend: str) -> Function:
        return lambda q, k, lse: (attention_mass(q, k, lse, backend=backend),)

    def eager(q: Tensor, k: Tensor, lse: Tensor) -> Tensors:
        """All probabilities at once, summed."""
        keys = k.repeat_interleave(group, dim=1).transpose(-1, -2)
        scores = (q @ keys).float() * width**-0.5
        return ((scores - lse[..., None]).exp().sum(dim=(1, 2)),)

    size = dtype.itemsize
    queries, keys = (n * width * size for n in (q_heads * count, kv_heads * length))
    work = Work(queries + keys + 4 * length, 2 * q_heads * count * length * width, dtype)
    part, part_of_result = everything()
    return OpCase(
        MASS,
        dtype,
        {"H": q_heads, "Hkv": kv_heads, "d": width, "L": length, "S": count},
        partial(_draw_mass, dtype, length, count, heads, width),
        leaves=0,
        functions={"ours": ours("triton"), "library": ours("library"), "eager": eager},
        truth=ours("reference"),
        part=part,
        part_of_result=part_of_result,
        work={"forward": (work,)},
    )


def _draw_mass(
    dtype: torch.dtype,
    length: int,
    count: int,
    heads: tuple[int, int],
    width: int,
    device: torch.device,
) -> Tensors:
    random = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device)

    q_heads, kv_heads = heads
    q, k = (draw(1, h, n, width).to(dtype) for h, n in ((q_heads, count), (kv_heads, length)))
    keys = k.float().repeat_interleave(q_heads // kv_heads, dim=1).transpose(-1, -2)
    lse = (q.float() @ keys * width**-0.5).logsumexp(dim=-1)
    # The last input stands for a gradient, of which there is none.
    return q, k, lse, draw(1)


def mass_sweep(toy: bool) -> list[OpCase]:
    if toy:
        return [_mass_case(torch.float32, 24, 5, (4, 2), 16)]
    return [
        _mass_case(torch.bfloat16, length, count, heads, 128)
        for heads in ((32, 32), (28, 4))
        for length in (1024, 4096)
        for count in (64, 256)
    ]


def _none(toy: bool) -> tuple[OpCase, ...]:
    return ()


_SOURCES = ("bench/gpu/op_case.py", "bench/gpu/replay.py")
BENCHMARKS = (
    Benchmark(
        NAME,
        measure,
        _none,
        sweep,
        sources=("boe_kernels/row_attention", "boe_kernels/query_attention", *_SOURCES),
        tests=("tests/gpu/test_gpu_row_attention.py", "tests/gpu/test_gpu_tiles.py"),
    ),
    Benchmark(
        MASS,
        measure,
        _none,
        mass_sweep,
        sources=("boe_kernels/attention_mass", *_SOURCES),
        tests=("tests/gpu/test_gpu_attention_mass.py", "tests/gpu/test_gpu_tiles.py"),
    ),
)
