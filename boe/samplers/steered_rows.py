"""Whose entropies a BoE step sums, and through which rows it goes back."""

from __future__ import annotations

import torch
from torch import Tensor

from boe.denoisers.base import BridgeRule, GradientRequest, mark_rows
from boe.samplers.base import Step, share_of, top_positions
from boe_kernels import pad_rows

PROBE_SETS = ("complement", "masked", "masked_minus_self")
ACTIVE_SETS = ("candidates", "candidates_probes", "masked", "bridges", "all")
BRIDGE_RULES = ("received_paid", "received", "hidden_change", "random")


def choose_probes(step: Step, chosen: Tensor, probes: str, max_probes: int | None) -> Tensor:
    """bool (B, P), positions whose entropies are summed.

    Args:
        chosen: bool (B, P), the candidates.
        probes, max_probes: as in :class:`boe.samplers.BoE`.
    """
    # What the answer will not hold needs no certainty.
    masked = step.masked if step.discarded is None else step.masked & ~step.discarded
    asked = masked & ~chosen if probes == "complement" else masked
    if max_probes is None:
        return asked
    limit = torch.full_like(step.budget, max_probes)
    return top_positions(step.stats.entropy, asked, limit)


def choose_active(
    step: Step,
    request: GradientRequest,
    steered: Tensor,
    active_set: str,
    bridges: float,
    bridge_rule: str,
) -> tuple[Tensor, int]:
    """Active rows, int64 (B, A) ascending and padded, and the forwards it took.

    Args:
        request: with candidates and probes.
        steered: bool (B,), sequences that take a gradient.
        active_set, bridges, bridge_rule: ``active`` and the others of
            :class:`boe.samplers.BoE`.
    """
    canvas, facts = step.canvas, step.denoiser.facts
    if active_set == "all":
        return pad_rows(canvas.valid & steered.unsqueeze(1)), 0
    members = [request.candidates]
    if active_set == "candidates_probes":
        members.append(facts.row_of(request.probes))
    elif active_set in ("masked", "bridges"):
        masked = torch.where(step.masked & steered.unsqueeze(1), step.positions, -1)
        members += [masked, facts.row_of(masked)]
    active = mark_rows(torch.cat(members, dim=1), canvas.length)
    if active_set != "bridges":
        return pad_rows(active), 0
    others = canvas.valid & steered.unsqueeze(1) & ~active
    forwards = 0
    if bridge_rule == "random":
        rank = step.uniform(step.canvas.valid)
    else:
        rule: BridgeRule = bridge_rule  # type: ignore[assignment]
        rank, forwards = step.denoiser.bridge_scores(step.prediction, request, rule)
    wanted = share_of(others.sum(dim=1), bridges)
    return pad_rows(active | top_positions(rank, others, wanted)), forwards
