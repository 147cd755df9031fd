"""Token Influence Scores as one Triton kernel: one launch for the batch.

One program per canvas. The launch, not the memory, is what this costs: a step's gradients
are a megabyte or two, still in the cache, and everything else is a few numbers. So the
normalisation, which needs all candidates of a canvas, is not worth a second launch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from boe_kernels._triton import AotCase, for_device, launch
from boe_kernels.tis_scores.reference import GATES, NORMALISATIONS


@dataclass(frozen=True)
class ScoreLaunch:
    """Launch parameters of one architecture.

    Attributes:
        warps: warps per program.
        block_candidates, block_width: candidates and embedding dimensions read at once.
        block_positions: positions handled at once where nothing but numbers is read.
    """

    warps: int
    block_candidates: int
    block_width: int
    block_positions: int


# Not tuned on the hardware: 8 values of each operand per thread in flight (AMD: 16).
LAUNCH: Mapping[str, ScoreLaunch] = {
    "sm_80": ScoreLaunch(16, 8, 512, 512),
    "sm_90": ScoreLaunch(16, 8, 512, 512),
    "sm_100": ScoreLaunch(16, 8, 512, 512),
    "gfx942": ScoreLaunch(8, 8, 1024, 512),
}

_TINY: tl.constexpr = tl.constexpr(torch.finfo(torch.float32).tiny)
_INFINITY: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def _gate(entropy, log_vocabulary):
    """clip(1 − H/ln V, 0, 1); NaN stays."""
    gate = 1.0 - tl.div_rn(entropy, log_vocabulary)
    return tl.clamp(gate, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _penalty(entropy, weight, threshold):
    """λ·[h − H]₊²; NaN stays."""
    shortfall = tl.maximum(threshold - entropy, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return weight * (shortfall * shortfall)


@triton.jit(do_not_specialize=["stride_candidates", "n_candidates", "n_positions"])
def _tis_kernel(
    gradient_ptr,
    delta_ptr,
    entropy_ptr,
    candidates_ptr,
    remaining_ptr,
    score_ptr,
    influence_ptr,
    gate_ptr,
    penalty_ptr,
    stride_gb: tl.int64,
    stride_gc: tl.int64,
    stride_db: tl.int64,
    stride_dc: tl.int64,
    stride_candidates: tl.int64,
    n_candidates: tl.int32,
    n_positions: tl.int32,
    width: tl.int32,
    log_vocabulary: tl.float32,
    weight: tl.float32,
    floor: tl.float32,
    ANNEAL: tl.constexpr,
    GATE: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK_CANDIDATES: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64)
    remaining = tl.load(remaining_ptr + batch).to(tl.float32)
    threshold = floor * remaining
    if ANNEAL:
        weight = weight * remaining
    canvas = batch * n_positions

    for start in range(0, n_positions, BLOCK_POSITIONS):
        positions = start + tl.arange(0, BLOCK_POSITIONS)
        wanted = positions < n_positions
        entropy = tl.load(entropy_ptr + canvas + positions, mask=wanted, other=0.0)
        entropy = entropy.to(tl.float32)
        none = tl.zeros((BLOCK_POSITIONS,), tl.float32)
        tl.store(gate_ptr + canvas + positions, _gate(entropy, log_vocabulary), mask=wanted)
        penalty = _penalty(entropy, weight, threshold)
        tl.store(penalty_ptr + canvas + positions, penalty, mask=wanted)
        tl.store(influence_ptr + canvas + positions, none, mask=wanted)
        tl.store(score_ptr + canvas + positions, none - _INFINITY, mask=wanted)
    # The stores above are to other threads' candidates below.
    tl.debug_barrier()

    count = tl.full((), 0, tl.int32)
    total = tl.full((), 0.0, tl.float32)
    low = total + _INFINITY
    high = total - _INFINITY
    for start in range(0, n_candidates, BLOCK_CANDIDATES):
        members = start + tl.arange(0, BLOCK_CANDIDATES)
        source = candidates_ptr + batch * stride_candidates + members
        slots = tl.load(source, mask=members < n_candidates, other=-1)
        chosen = slots >= 0
        products = tl.zeros((BLOCK_CANDIDATES, BLOCK_WIDTH), tl.float32)
        gradient_rows = gradient_ptr + batch * stride_gb + members[:, None] * stride_gc
        delta_rows = delta_ptr + batch * stride_db + members[:, None] * stride_dc
        for first in range(0, width, BLOCK_WIDTH):
            columns = first + tl.arange(0, BLOCK_WIDTH)
            wanted = chosen[:, None] & (columns < width)[None, :]
            g = tl.load(gradient_rows + columns[None, :], mask=wanted, other=0.0)
            d = tl.load(delta_rows + columns[None, :], mask=wanted, other=0.0)
            products = tl.fma(g.to(tl.float32), d.to(tl.float32), products)
        influence = -tl.sum(products, axis=1)
        tl.store(influence_ptr + canvas + slots, influence, mask=chosen)
        count += tl.sum(chosen.to(tl.int32))
        total += tl.sum(tl.where(chosen, influence, 0.0))
        low = tl.minimum(low, tl.min(tl.where(chosen, influence, _INFINITY)))
        high = tl.maximum(high, tl.max(tl.where(chosen, influence, -_INFINITY)))
    tl.debug_barrier()

    offset = tl.full((), 0.0, tl.float32)
    scale = offset + 1.0
    if NORMALISE == "zscore":
        offset = tl.div_rn(total, tl.maximum(count, 1).to(tl.float32))
        squares = tl.full((), 0.0, tl.float32)
        for start in range(0, n_candidates, BLOCK_POSITIONS):
            members = start + tl.arange(0, BLOCK_POSITIONS)
            source = candidates_ptr + batch * stride_candidates + members
            slots = tl.load(source, mask=members < n_candidates, other=-1)
            influence = tl.load(influence_ptr + canvas + slots, mask=slots >= 0, other=0.0)
            centred = tl.where(slots >= 0, influence - offset, 0.0)
            squares += tl.sum(centred * centred)
        variance = tl.div_rn(squares, tl.maximum(count, 1).to(tl.float32))
        scale = tl.maximum(tl.sqrt_rn(variance), _TINY, propagate_nan=tl.PropagateNan.ALL)
    if NORMALISE == "minmax":
        # The sum is NaN if any influence is, which the extremes do not show.
        unknown = total != total
        offset = tl.where(unknown, float("nan"), low)
        scale = tl.maximum(high - low, _TINY)

    for start in range(0, n_candidates, BLOCK_POSITIONS):
        members = start + tl.arange(0, BLOCK_POSITIONS)
        source = candidates_ptr + batch * stride_candidates + members
        slots = tl.load(source, mask=members < n_candidates, other=-1)
        chosen = slots >= 0
        value = tl.load(influence_ptr + canvas + slots, mask=chosen, other=0.0)
        entropy = tl.load(entropy_ptr + canvas + slots, mask=chosen, other=0.0).to(tl.float32)
        if NORMALISE != "none":
            value = tl.div_rn(value - offset, scale)
        gate = _gate(entropy, log_vocabulary)
        if GATE == "paper":
            value = value * gate
        if GATE == "positive":
            value = tl.where(value > 0.0, value * gate, value)
        value = value - _penalty(entropy, weight, threshold)
        tl.store(score_ptr + canvas + slots, value, mask=chosen)


def forward(
    gradient: Tensor,
    delta: Tensor,
    entropy: Tensor,
    candidates: Tensor,
    remaining: Tensor,
    vocabulary: int,
    gate: str,
    penalty: float,
    floor: float,
    anneal: bool,
    normalise: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Score, influence, gate and penalty of every position, (B, P) each."""
    batch, count, width = gradient.shape
    gradient, delta = (x if x.stride(2) == 1 else x.contiguous() for x in (gradient, delta))
    entropy, candidates = entropy.contiguous(), candidates.contiguous()
    score, influence, gates, penalties = (
        entropy.new_empty(entropy.shape, dtype=torch.float32) for _ in range(4)
    )
    parameters = for_device(LAUNCH, gradient.device)
    launch(
        _tis_kernel,
        (batch,),
        gradient,
        delta,
        entropy,
        candidates,
        remaining.contiguous(),
        score,
        influence,
        gates,
        penalties,
        *gradient.stride()[:2],
        *delta.stride()[:2],
        0 if candidates.shape[0] == 1 else candidates.stride(0),
        count,
        entropy.shape[1],
        width,
        math.log(vocabulary),
        penalty,
        floor,
        ANNEAL=anneal,
        GATE=gate,
        NORMALISE=normalise,
        BLOCK_CANDIDATES=parameters.block_candidates,
        BLOCK_WIDTH=parameters.block_width,
        BLOCK_POSITIONS=parameters.block_positions,
        num_warps=parameters.warps,
        enable_fp_fusion=False,
    )
    return score, influence, gates, penalties


def aot_cases() -> Iterator[AotCase]:
    """Every gate, every normalisation, every dtype."""
    entropy = torch.empty(2, 256, device="meta")
    candidates = torch.empty(2, 64, dtype=torch.int64, device="meta")
    chosen = [(gate, "none", torch.float32) for gate in GATES]
    chosen += [("paper", normalise, torch.float32) for normalise in NORMALISATIONS[1:]]
    chosen += [("positive", "zscore", dtype) for dtype in (torch.bfloat16, torch.float16)]
    for gate, normalise, dtype in chosen:
        gradient = torch.empty(2, 64, 4096, dtype=dtype, device="meta")
        inputs = (gradient, gradient, entropy, candidates, entropy[:, 0], 126464)
        call = partial(forward, *inputs, gate, 0.2, 0.3, True, normalise)
        name = f"gate {gate}, {normalise}, {str(dtype).removeprefix('torch.')}"
        yield AotCase(name, call, sample=dtype == torch.bfloat16)
