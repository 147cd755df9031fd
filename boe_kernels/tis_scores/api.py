"""The public function of the Token Influence Scores."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from boe_kernels._arguments import (
    require_alike,
    require_floating,
    require_int,
    require_number,
    require_same_device,
    require_shape,
    require_tensor,
)
from boe_kernels._dispatch import decide, note_path
from boe_kernels._rows import check_rows, pad_rows
from boe_kernels.tis_scores import op
from boe_kernels.tis_scores.reference import GATES, NORMALISATIONS, reference


class TisScores(NamedTuple):
    """Scores of the candidates among the positions of every canvas, and their parts.

    All (B, P), float32 (float64 for float64 gradients).
    """

    score: Tensor
    """gate(normalised influence) − penalty; −∞ at positions that are no candidates."""
    influence: Tensor
    """TIS_i = −⟨g_i, Δe_i⟩; 0 at positions that are no candidates."""
    gate: Tensor
    """c_i = clip(1 − H_i/ln V, 0, 1), at every position."""
    penalty: Tensor
    """λ·[h − H_i]₊², at every position."""


def tis_scores(
    gradient: Tensor,
    delta: Tensor,
    entropy: Tensor,
    candidates: Tensor,
    remaining: Tensor,
    *,
    vocabulary: int,
    gate: str = "none",
    penalty: float = 0.0,
    floor: float = 0.0,
    anneal: bool = False,
    normalise: str = "none",
    backend: str = "auto",
) -> TisScores:
    """Token Influence Scores, gated and penalised (eqs. 14, 15, 18, 19 of the TABES paper).

    TIS_i = −⟨g_i, Δe_i⟩ predicts by how much revealing candidate i lowers the entropy of the
    probes. The score is what is left of it after, in this order: normalisation over the
    canvas's candidates, the gate c_i = clip(1 − H_i/ln V, 0, 1), and the penalty
    λ·[h − H_i]₊² with h = floor · remaining. A constant: no gradient passes.

    Args:
        gradient: (B, C, D), g_i = ∂F/∂e_i of every candidate; float64/float32/bfloat16/
            float16. The products are summed in float32 (float64).
        delta: (B, C, D) of gradient's dtype, Δe_i = ẽ_i − e_m.
        entropy: (B, P), H_i in nats of every masked position, float32 (float64).
        candidates: which of the P positions the C candidates are: int64 (C,) shared by the
            batch, or (B, C) padded with −1. No position twice; C may be 0. What gradient
            and delta hold at padding does not matter.
        remaining: (B,), float32 (float64), the share of the masks that are left.
        vocabulary: V ≥ 2, whose logarithm is the largest entropy there is.
        gate: "none"; "positive" multiplies positive scores by c_i; "paper" all of them.
        penalty, floor: λ and h_max, finite and not negative.
        anneal: multiply λ by ``remaining``, too.
        normalise: "none"; "zscore" over the candidates (population deviation); "minmax" to
            [0, 1]. Influences that are all equal become 0.
        backend: "auto", "triton", "library" or "reference".

    Returns:
        TisScores.

    Raises:
        TypeError, ValueError, IndexError: an argument is not as above.
    """
    require_tensor("gradient", gradient, rank=3)
    require_floating("gradient", gradient)
    batch, count, _ = gradient.shape
    require_tensor("delta", delta)
    require_alike("delta", delta, "gradient", gradient)
    require_shape("delta", delta, tuple(gradient.shape), "that of gradient")
    require_tensor("entropy", entropy, rank=2)
    require_floating("entropy", entropy)
    require_same_device("entropy", entropy, "gradient", gradient)
    positions = entropy.shape[1]
    require_shape("entropy", entropy, (batch, positions), "(B, P)")
    check_rows("candidates", candidates, batch, positions, like=gradient, allow_mask=False)
    require_shape("candidates", candidates, (*candidates.shape[:-1], count), "(..., C)")
    require_tensor("remaining", remaining)
    require_floating("remaining", remaining)
    require_same_device("remaining", remaining, "gradient", gradient)
    require_shape("remaining", remaining, (batch,), "(B,)")
    require_int("vocabulary", vocabulary)
    if vocabulary < 2:
        raise ValueError(f"vocabulary must be at least 2, got {vocabulary}")
    for name, value, choices in (
        ("gate", gate, GATES),
        ("normalise", normalise, NORMALISATIONS),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    for name, number in (("penalty", penalty), ("floor", floor)):
        require_number(name, number)
        if not 0.0 <= number < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {number}")
    path = decide(op.NAME, backend, gradient.device, gradient.dtype).path
    inputs = (
        gradient.detach(),
        delta.detach(),
        entropy.detach(),
        pad_rows(candidates),
        remaining.detach(),
        vocabulary,
        gate,
        float(penalty),
        float(floor),
        anneal,
        normalise,
    )
    if path == "reference":
        note_path(op.NAME, path)
        return TisScores(*reference(*inputs))
    return TisScores(*op.forward_op(*inputs, path))
