"""The ops of a steering step on a GPU: soft writes, influence scores, token draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from bench.entropy import LOGIT_SCALE
from bench.gpu.benchmark import Benchmark
from bench.gpu.op_case import Function, OpCase, Tensors, everything, measure, rows_of
from bench.gpu.roofline import Work
from bench.gpu.vocabulary import VOCABULARY, WIDTH
from boe_kernels import inject_soft_embeddings, sample_tokens, tis_scores

SOFT, SCORES, SAMPLING = "soft_embedding", "tis_scores", "token_sampling"
_ALPHA = 0.5
_LENGTH = 1024
_TOP_K = 64


# --- inject_soft_embeddings ---------------------------------------------------------


def _soft_case(
    dtype: torch.dtype, rows: int, vocabulary: int, width: int, top_k: int | None
) -> OpCase:
    length = max(rows, _LENGTH if width == WIDTH else rows + 3)

    def ours(backend: str) -> Function:
        def inject(embeds: Tensor, places: Tensor, logits: Tensor, table: Tensor) -> Tensors:
            return inject_soft_embeddings(
                embeds,
                places,
                logits,
                table,
                table[0],
                _ALPHA,
                top_k,
                is_logits=True,
                return_delta=True,
                backend=backend,
            )

        return inject

    def eager(embeds: Tensor, places: Tensor, logits: Tensor, table: Tensor) -> Tensors:
        p = logits.float().softmax(dim=-1)
        if top_k is None:
            expected = p.to(table.dtype) @ table
        else:
            top = p.topk(top_k, dim=-1)
            weights = (top.values / top.values.sum(dim=-1, keepdim=True)).to(table.dtype)
            expected = torch.einsum("brk,brkd->brd", weights, table[top.indices])
        delta = expected - table[0]
        return embeds.index_copy(1, places, table[0] + _ALPHA * delta), delta

    functions = {"ours": ours("triton"), "library": ours("library"), "eager": eager}
    if top_k is None:
        functions["fused"] = ours("triton_fused")
    size = dtype.itemsize
    read = rows * vocabulary * size
    canvas = 2 * length * width * size
    named = vocabulary if top_k is None else rows * top_k
    products = 2 * rows * width * (vocabulary if top_k is None else top_k)
    part, part_of_result = everything()
    config: dict[str, int | str] = {"C": rows, "V": vocabulary, "D": width}
    return OpCase(
        SOFT,
        dtype,
        config if top_k is None else {**config, "k": top_k},
        partial(_draw_soft, dtype, rows, vocabulary, width, length),
        leaves=0,
        functions=functions,
        truth=ours("reference"),
        part=part,
        part_of_result=part_of_result,
        work={"forward": (Work(read + canvas + named * width * size, products, dtype),)},
    )


def _draw_soft(
    dtype: torch.dtype, rows: int, vocabulary: int, width: int, length: int, device: torch.device
) -> Tensors:
    random = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device).to(dtype)

    places = torch.randperm(length, generator=random, device=device)[:rows]
    logits = LOGIT_SCALE * draw(1, rows, vocabulary)
    return draw(1, length, width), places, logits, draw(vocabulary, width), draw(1)


def soft_sweep(toy: bool) -> list[OpCase]:
    if toy:
        return [_soft_case(torch.float32, 5, 67, 16, top_k) for top_k in (None, 4)]
    return [
        _soft_case(torch.bfloat16, rows, VOCABULARY, WIDTH, top_k)
        for top_k in (None, _TOP_K)
        for rows in (64, 256)
    ]


# --- tis_scores ---------------------------------------------------------------------


def _score_case(dtype: torch.dtype, candidates: int, positions: int, width: int) -> OpCase:
    def ours(backend: str) -> Function:
        def score(gradient: Tensor, delta: Tensor, entropy: Tensor, chosen: Tensor) -> Tensors:
            return tuple(
                tis_scores(
                    gradient,
                    delta,
                    entropy,
                    chosen,
                    entropy.new_full((1,), 0.5),
                    vocabulary=VOCABULARY,
                    gate="paper",
                    penalty=1.0,
                    floor=2.0,
                    anneal=True,
                    normalise="zscore",
                    backend=backend,
                )
            )

        return score

    size = candidates * width * dtype.itemsize
    part, part_of_result = everything()
    return OpCase(
        SCORES,
        dtype,
        {"C": candidates, "P": positions, "D": width},
        partial(_draw_scores, dtype, candidates, positions, width),
        leaves=0,
        functions={"ours": ours("triton"), "library": ours("library")},
        truth=ours("reference"),
        part=part,
        part_of_result=part_of_result,
        work={"forward": (Work(2 * size + 20 * positions, 2 * candidates * width, dtype),)},
    )


def _draw_scores(
    dtype: torch.dtype, candidates: int, positions: int, width: int, device: torch.device
) -> Tensors:
    random = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device)

    chosen = torch.randperm(positions, generator=random, device=device)[:candidates]
    entropy = draw(1, positions).abs()
    gradient, delta = (draw(1, candidates, width).to(dtype) for _ in range(2))
    return gradient, delta, entropy, chosen, draw(1)


def score_sweep(toy: bool) -> list[OpCase]:
    if toy:
        return [_score_case(torch.float32, 5, 9, 16)]
    return [_score_case(torch.bfloat16, count, 4 * count, WIDTH) for count in (64, 256)]


# --- sample_tokens ------------------------------------------------------------------


def _sampling_case(dtype: torch.dtype, rows: int, vocabulary: int) -> OpCase:
    def ours(backend: str) -> Function:
        def draw(logits: Tensor, seeds: Tensor) -> Tensors:
            sample = sample_tokens(logits, seeds, backend=backend)
            return (sample.token, *sample.stats)

        return draw

    def gumbel(logits: Tensor, seeds: Tensor) -> Tensors:
        """What published samplers do: noise in float64, then the argmax; no statistics."""
        noise = torch.rand_like(logits, dtype=torch.float64)
        return ((logits.double().exp() / -noise.log()).argmax(dim=-1),)

    part, part_of_result = _rows_with_seeds()
    return OpCase(
        SAMPLING,
        dtype,
        {"N": rows, "V": vocabulary},
        partial(_draw_sampling, dtype, rows, vocabulary),
        leaves=0,
        functions={"ours": ours("triton"), "library": ours("library"), "gumbel": gumbel},
        truth=ours("reference"),
        part=part,
        part_of_result=part_of_result,
        work={"forward": (Work(rows * vocabulary * dtype.itemsize, 0, dtype),)},
    )


def _rows_with_seeds() -> tuple[Callable[[Tensors], Tensors], Callable[[Tensor], Tensor]]:
    count = 8
    _, part_of_result = rows_of(count)
    return lambda inputs: tuple(x[:count] for x in inputs), part_of_result


def _draw_sampling(dtype: torch.dtype, rows: int, vocabulary: int, device: torch.device) -> Tensors:
    random = torch.Generator(device).manual_seed(0)
    logits = LOGIT_SCALE * torch.randn(rows, vocabulary, generator=random, device=device)
    seeds = torch.randint(1 << 62, (rows,), generator=random, device=device)
    return logits.to(dtype), seeds, logits[:, 0].clone()


def sampling_sweep(toy: bool) -> list[OpCase]:
    if toy:
        return [_sampling_case(torch.float32, 9, 67)]
    return [_sampling_case(torch.bfloat16, rows, VOCABULARY) for rows in (64, 256)]


def _none(toy: bool) -> Sequence[OpCase]:
    return ()


def _benchmark(
    name: str, packages: Sequence[str], sweep: Callable[[bool], Sequence[OpCase]], test: str
) -> Benchmark:
    return Benchmark(
        name,
        measure,
        _none,
        sweep,
        sources=(
            *(f"boe_kernels/{package}" for package in packages),
            "bench/gpu/op_case.py",
            "bench/gpu/steering.py",
        ),
        tests=(f"tests/gpu/{test}.py",),
    )


BENCHMARKS = (
    _benchmark(SOFT, ("soft_embedding",), soft_sweep, "test_gpu_steering"),
    _benchmark(SCORES, ("tis_scores",), score_sweep, "test_gpu_steering"),
    _benchmark(SAMPLING, ("token_sampling", "entropy"), sampling_sweep, "test_gpu_vocabulary"),
)
