"""Device code of the vocabulary statistics: one read of a row gives all of them.

A row is cut into parts, always in the same places, and a part is read by ``LANES`` lanes
side by side, four logits each at a time. Every lane keeps, of the logits that it has seen:
their maximum m, the second largest, S = Σ exp(z − m), T = Σ (z − m)·exp(z − m), and where
m was. When a larger maximum m' comes, with δ = m − m', T becomes (T + δS)·exp(δ)
and S becomes S·exp(δ). Lanes are merged into parts and parts into the row by the same rule.
Then, with the row's m, S and T:

    ln Σ exp z = m + ln S,    H = ln S − T/S,    p(1) = 1/S,    p(2) = exp(m₂ − m)/S.

Both terms of H are positive: nothing cancels. In the code distances are in units of ln 2,
T with them, because 2ˣ is one instruction where eˣ is five. Which programs read which
parts changes no bit of the result, so a row's statistics do not depend on how many rows
there are.

Impossible ids are −inf: they have no weight. NaN is carried along by the maximum.

A draw is the end of a race: with E_v = −ln u_v exponentially distributed, the id of least
E_v·exp((m − z_v)/τ) is a draw from softmax(z/τ). The negative logarithm of that is z_v/τ
and a Gumbel variate, up to a constant; the race spares each id that logarithm.
"""

from __future__ import annotations

import triton
import triton.language as tl

from boe_kernels.token_sampling.noise_triton import exponential

LOADS_PER_LANE: tl.constexpr = tl.constexpr(4)
"""Logits that a lane has in flight at once; the loop below is written out for so many."""

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)

# 2 to this is exactly zero in float32; used for (−∞) − m, so that 0·∞ never arises.
_FLOOR: tl.constexpr = tl.constexpr(-200.0)
_NO_COLUMN: tl.constexpr = tl.constexpr(2**31 - 1)
_INFINITY: tl.constexpr = tl.constexpr(float("inf"))
# NaN is written out below: as a constant it would differ from itself, and Triton refuses a
# kernel whose constants have changed.


@triton.jit
def load_logits(row_ptr, columns, wanted, suppressed_ptr, LISTED: tl.constexpr):
    """Logits in float32; −inf where not wanted and at suppressed ids.

    LISTED: how many suppressed ids ``suppressed_ptr`` lists; −1 if it has a byte per id.
    """
    z = tl.load(row_ptr + columns, mask=wanted, other=-float("inf")).to(tl.float32)
    if LISTED < 0:
        suppressed = tl.load(suppressed_ptr + columns, mask=wanted, other=0)
        z = tl.where(suppressed != 0, -_INFINITY, z)
    for i in tl.static_range(LISTED):
        z = tl.where(columns == tl.load(suppressed_ptr + i).to(tl.int32), -_INFINITY, z)
    return z


@triton.jit
def _larger(a, b):
    """The maximum, NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _distance(z, peak):
    """(z − peak)/ln 2, but never below the floor: (−∞) − (−∞) becomes the floor, too."""
    return tl.maximum((z - peak) * LOG2_E, _FLOOR)


@triton.jit
def _merge_lanes(peak, runner_up, total, weighted, column):
    """Statistics of the lanes' disjoint sets of ids, joined into scalars."""
    some_nan = tl.max((peak != peak).to(tl.int32))
    largest = tl.where(some_nan > 0, float("nan"), tl.max(peak))
    winner = tl.min(tl.where(peak == largest, column, _NO_COLUMN))
    other_peaks = tl.where(column == winner, -_INFINITY, peak)
    second = tl.maximum(tl.max(runner_up), tl.max(other_peaks))
    shift = _distance(peak, largest)
    scale = tl.exp2(shift)
    mass = tl.sum(total * scale)
    moment = tl.sum(tl.fma(shift, total, weighted) * scale)
    return largest, second, mass, moment, winner


@triton.jit
def join_parts(
    largest_a, second_a, mass_a, moment_a, winner_a, largest_b, second_b, mass_b, moment_b, winner_b
):
    """Statistics of two disjoint sets of ids, the lower ids in ``a``, joined."""
    largest = _larger(largest_a, largest_b)
    second = tl.maximum(tl.maximum(second_a, second_b), tl.minimum(largest_a, largest_b))
    shift_a, shift_b = _distance(largest_a, largest), _distance(largest_b, largest)
    scale_a, scale_b = tl.exp2(shift_a), tl.exp2(shift_b)
    mass = tl.fma(mass_a, scale_a, mass_b * scale_b)
    moment_a = tl.fma(shift_a, mass_a, moment_a)
    moment_b = tl.fma(shift_b, mass_b, moment_b)
    moment = tl.fma(moment_a, scale_a, moment_b * scale_b)
    winner = tl.where(largest_b > largest_a, winner_b, winner_a)
    return largest, second, mass, moment, winner


@triton.jit
def slower(race, peak, largest, inverse_temperature):
    """A race's end relative to ``largest`` instead of ``peak``; infinite without a peak."""
    behind = tl.where(peak > -_INFINITY, largest - peak, _INFINITY)
    return race * tl.exp2(behind * (inverse_temperature * LOG2_E))


@triton.jit
def join_draws(race_a, token_a, peak_a, race_b, token_b, peak_b, largest, inverse_temperature):
    """The draw from two disjoint sets of ids, the lower ids in ``a``."""
    race_a = slower(race_a, peak_a, largest, inverse_temperature)
    race_b = slower(race_b, peak_b, largest, inverse_temperature)
    return tl.minimum(race_a, race_b), tl.where(race_b < race_a, token_b, token_a)


@triton.jit
def _draw(race, drawn, z, columns, peak, seed, inverse_temperature):
    """The faster of a lane's draw so far and the id that it sees now."""
    handicap = tl.exp2((peak - z) * (inverse_temperature * LOG2_E))
    end = exponential(seed, columns) * handicap
    faster = end < race
    return tl.where(faster, end, race), tl.where(faster, columns, drawn)


@triton.jit
def part_statistics(
    row_ptr,
    begin,
    end,
    n_columns,
    suppressed_ptr,
    seed,
    inverse_temperature,
    LISTED: tl.constexpr,
    LANES: tl.constexpr,
    DRAW: tl.constexpr,
):
    """Statistics of columns [begin, end) of a row, and a draw from them.

    Returns:
        m, the second largest, S, T, the column of m; the end of the draw's race, the draw.
    """
    lanes = tl.arange(0, LANES)
    peak = tl.full((LANES,), -_INFINITY, tl.float32)
    runner_up = peak
    total = tl.zeros((LANES,), tl.float32)
    weighted = tl.zeros((LANES,), tl.float32)
    found = tl.zeros((LANES,), tl.int32) + begin
    race = tl.full((LANES,), _INFINITY, tl.float32)
    drawn = tl.full((LANES,), _NO_COLUMN, tl.int32)
    for start in range(begin, end, LOADS_PER_LANE * LANES):
        c0 = start + lanes
        c1 = c0 + LANES
        c2 = c1 + LANES
        c3 = c2 + LANES
        z0 = load_logits(row_ptr, c0, c0 < n_columns, suppressed_ptr, LISTED)
        z1 = load_logits(row_ptr, c1, c1 < n_columns, suppressed_ptr, LISTED)
        z2 = load_logits(row_ptr, c2, c2 < n_columns, suppressed_ptr, LISTED)
        z3 = load_logits(row_ptr, c3, c3 < n_columns, suppressed_ptr, LISTED)
        # The two largest of the four, then of all so far.
        high01, high23 = _larger(z0, z1), _larger(z2, z3)
        low = tl.maximum(tl.minimum(z0, z1), tl.minimum(z2, z3))
        low = tl.maximum(low, tl.minimum(high01, high23))
        high = _larger(high01, high23)
        runner_up = tl.maximum(tl.maximum(runner_up, low), tl.minimum(peak, high))
        found = tl.where(high > peak, start, found)
        new_peak = _larger(peak, high)
        shift = _distance(peak, new_peak)
        scale = tl.exp2(shift)
        d0, d1 = _distance(z0, new_peak), _distance(z1, new_peak)
        d2, d3 = _distance(z2, new_peak), _distance(z3, new_peak)
        w0, w1, w2, w3 = tl.exp2(d0), tl.exp2(d1), tl.exp2(d2), tl.exp2(d3)
        moment = tl.fma(d0, w0, tl.fma(d1, w1, tl.fma(d2, w2, d3 * w3)))
        weighted = tl.fma(tl.fma(shift, total, weighted), scale, moment)
        total = tl.fma(total, scale, (w0 + w1) + (w2 + w3))
        if DRAW:
            race = tl.where(
                new_peak > peak, slower(race, peak, new_peak, inverse_temperature), race
            )
            race, drawn = _draw(race, drawn, z0, c0, new_peak, seed, inverse_temperature)
            race, drawn = _draw(race, drawn, z1, c1, new_peak, seed, inverse_temperature)
            race, drawn = _draw(race, drawn, z2, c2, new_peak, seed, inverse_temperature)
            race, drawn = _draw(race, drawn, z3, c3, new_peak, seed, inverse_temperature)
        peak = new_peak

    # Where exactly the maximum stands is looked up among the four of its lane, once.
    is_peak = peak == tl.max(peak)
    c0 = found + lanes
    z0 = load_logits(row_ptr, c0, is_peak & (c0 < n_columns), suppressed_ptr, LISTED)
    c1 = c0 + LANES
    z1 = load_logits(row_ptr, c1, is_peak & (c1 < n_columns), suppressed_ptr, LISTED)
    c2 = c1 + LANES
    z2 = load_logits(row_ptr, c2, is_peak & (c2 < n_columns), suppressed_ptr, LISTED)
    c3 = c2 + LANES
    column = tl.where(z0 == peak, c0, tl.where(z1 == peak, c1, tl.where(z2 == peak, c2, c3)))
    column = tl.where(is_peak, column, _NO_COLUMN)

    largest, second, mass, moment, winner = _merge_lanes(peak, runner_up, total, weighted, column)
    end = largest
    token = winner
    if DRAW:
        races = slower(race, peak, largest, inverse_temperature)
        end = tl.min(races)
        token = tl.min(tl.where(races == end, drawn, _NO_COLUMN))
    return largest, second, mass, moment, winner, end, token


@triton.jit
def row_statistics(
    row_ptr,
    n_columns,
    part_tiles,
    n_parts,
    suppressed_ptr,
    LISTED: tl.constexpr,
    LANES: tl.constexpr,
):
    """The statistics of a whole row, read part by part by one program."""
    largest, second, mass, moment, winner, _, _ = nothing_yet()
    for part in range(0, n_parts):
        begin = part * part_tiles * (LOADS_PER_LANE * LANES)
        end = tl.minimum(begin + part_tiles * (LOADS_PER_LANE * LANES), n_columns)
        peak_b, second_b, mass_b, moment_b, winner_b, _, _ = part_statistics(
            row_ptr, begin, end, n_columns, suppressed_ptr, 0, 1.0, LISTED, LANES, False
        )
        largest, second, mass, moment, winner = join_parts(
            largest, second, mass, moment, winner, peak_b, second_b, mass_b, moment_b, winner_b
        )
    return largest, second, mass, moment, winner


@triton.jit
def nothing_yet():
    """The statistics of no ids: joined with others, they change no bit of them."""
    zero = tl.full((), 0.0, tl.float32)
    nowhere = tl.full((), _NO_COLUMN, tl.int32)
    return zero - _INFINITY, zero - _INFINITY, zero, zero, nowhere, zero + _INFINITY, nowhere


@triton.jit
def store_statistics(
    largest,
    second,
    mass,
    moment,
    winner,
    row,
    entropy_ptr,
    lse_ptr,
    top1_ptr,
    top2_ptr,
    argmax_ptr,
):
    """Write a row's results; returns its entropy and ln Σ exp z."""
    # NaN or +inf among the logits, or no possible id: there is no distribution.
    valid = tl.abs(largest) < _INFINITY
    log_mass = tl.log(mass)
    entropy = tl.where(valid, log_mass - tl.div_rn(moment * LN_2, mass), float("nan"))
    lse = tl.where(valid, largest + log_mass, float("nan"))
    tl.store(entropy_ptr + row, entropy)
    tl.store(lse_ptr + row, lse)
    tl.store(top1_ptr + row, tl.where(valid, tl.div_rn(1.0, mass), float("nan")))
    top2 = tl.div_rn(tl.exp2(_distance(second, largest)), mass)
    tl.store(top2_ptr + row, tl.where(valid, top2, float("nan")))
    tl.store(argmax_ptr + row, in_range(winner).to(tl.int64))
    return entropy, lse


@triton.jit
def in_range(column):
    """A column that some id has, also where there was nothing to choose."""
    return tl.where(column == _NO_COLUMN, 0, column)
