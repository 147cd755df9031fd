"""Backward-on-Entropy steering: reveal what most lowers the entropy of the rest.

One step (docs/method.md): choose candidates C, write each softly into the canvas, sum
the entropies of the probes S, and go back once to the candidates' embeddings. The Token
Influence Score TIS_i = −⟨g_i, Δe_i⟩ (eq. 14 of the TABES paper) predicts by how much
revealing i lowers the probes' entropy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from boe.denoisers.base import (
    Context,
    Engine,
    GradientRequest,
    Keep,
    required_keep,
)
from boe.samplers.base import Clock, Sampler, Scores, Step, StepCost
from boe.samplers.boe_options import check_options, unread
from boe.samplers.candidates import choose_candidates, least_of_greedy, may_compete
from boe.samplers.deciding import decide_close
from boe.samplers.last_scores import by_last_scores, remember_scores
from boe.samplers.late_options import repr_of
from boe.samplers.quadrature import POINT, quadrature_gradient
from boe.samplers.steered_rows import (
    choose_active,
    choose_probes,
)
from boe_kernels import pad_rows, tis_scores


@dataclass(frozen=True)
class BoE(Sampler):
    """Backward-on-Entropy steering.

    Attributes:
        candidates: how eligible positions are ranked for candidacy: "confidence",
            "margin", "entropy" (lowest first), "entropy_band" (nearest to the median
            entropy), "random", or "all" of them.
        rho: share of the eligible positions that become candidates, but never fewer
            than are revealed. Not used by candidates="all".
        tolerance: only positions whose top probability falls short of the b-th largest
            eligible one by at most this much are candidates (b: how many are revealed);
            ``None`` for no such bound. Not in the paper: it limits what a reveal may cost
            in certainty, where ρ limits how many positions compete.
        sure: where the b-th largest eligible top probability is at least this, the greedy
            choice risks next to nothing: it is revealed, and no gradient is taken; ``None``
            always takes one. Not in the paper.
        certainty: κ of TIS_i + κ·ln(top probability of i): what a reveal promises, against
            the nats that it risks. Added after gate and penalty. Not in the paper.
        probes: whose entropies are summed: "complement" (masked, not candidates),
            "masked" (all; a candidate's own entropy is included), "masked_minus_self"
            (all, with that term removed row-locally).
        max_probes: keep only so many probes, those of the highest entropy.
        active: rows through which the backward passes: "candidates_probes", "masked",
            "bridges" (masked and the best share ``bridges`` of the observed rows), "all",
            or "candidates" (the paper's choice; only with probes that are candidates).
        bridges, bridge_rule: how many bridge rows, and how they are ranked:
            "received_paid" (attention received from probes × paid to candidates),
            "received", "hidden_change" (costs a forward) or "random".
        alpha: the gradient is taken with candidates at e_m + α·Δe; 0 is eq. 14, ½ the
            midpoint, 1 the paper's appendix A.3.1.
        quadrature: "point" takes the gradient at ``alpha``; "simpson" averages those at
            α = 0, ½ and 1 by 1:4:1, "gauss" those of the two-point Gauss rule, at three and
            two times the rows (:mod:`boe.samplers.quadrature`). Not in the paper, which asks
            for it.
        context: at α > 0, rows outside the active set keep their current keys and values
            ("frozen", no further forward) or a second forward is run ("full").
        gate: c_i = clip(1 − H_i/ln V, 0, 1) multiplies the positive part of the score
            ("positive"), all of it ("paper", eq. 15), or nothing ("none").
        penalty, floor, penalty_anneal: λ and h_max of eqs. 18–19, λ·[h_t − H_i]₊² with
            h_t = h_max · remaining fraction; λ times that fraction too if annealed.
        normalise: scores over the candidates before gate and penalty: "none", "zscore"
            or "minmax".
        engine: "replay", "late" or "dense".
        top_k: soft writes from the k most probable ids only.
        guidance_gradient: under classifier-free guidance, the gradient of the "conditional"
            branch's entropies, or of the guided distribution's, through both branches
            ("combined"), for twice the rows.
        every: score every so many steps of a block, the first included; the steps between
            cost no gradient.
        between: how these rank the candidates: by the "last" scores, then, where there
            are none, by confidence; or by "confidence" alone.
        lookahead: let a lookahead against the frozen context decide among so many of the
            best-scored candidates (at least 2; of b reveals, those that compete for the
            b-th): what writing each does to the entropies is tried out on the masked rows.
            0 for none. Not in the paper, which asks for it.
        close: only where the b-th score exceeds the next by at most this, in nats; ``None``
            always asks. Only with ``lookahead``.
        lookahead_tokens: how many tokens are tried at each, weighted by their probabilities.
    """

    candidates: str = "confidence"
    rho: float = 0.25
    tolerance: float | None = 0.01
    sure: float | None = 0.99
    certainty: float = 0.0
    probes: str = "complement"
    max_probes: int | None = None
    active: str = "candidates_probes"
    bridges: float = 0.25
    bridge_rule: str = "received_paid"
    alpha: float = 0.5
    quadrature: str = POINT
    context: Context = "frozen"
    gate: str = "none"
    penalty: float = 0.0
    floor: float = 0.0
    penalty_anneal: bool = False
    normalise: str = "none"
    engine: Engine = "replay"
    top_k: int | None = None
    guidance_gradient: str = "conditional"
    every: int = 1
    between: str = "last"
    lookahead: int = 0
    close: float | None = None
    lookahead_tokens: int = 2

    name = "boe"

    def __repr__(self) -> str:
        return repr_of(self, ("quadrature", "lookahead", "close", "lookahead_tokens"))

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> BoE:
        """A named configuration, with changes: "default", or "paper" as printed.

        The paper gives no values for λ and h_max; "paper" uses 0.2 and 0.3 nats.
        """
        presets = {
            "default": cls(),
            "paper": cls(
                alpha=0.0,
                probes="masked",
                active="candidates",
                candidates="confidence",
                rho=0.25,
                tolerance=None,
                sure=None,
                gate="paper",
                penalty=0.2,
                floor=0.3,
            ),
        }
        if name not in presets:
            raise ValueError(f"preset must be one of {', '.join(presets)}, got {name!r}")
        return presets[name].changed(**changes)

    def changed(self, **changes: Any) -> BoE:
        """With other options; those that nothing reads any longer are at their defaults again.

        ``dataclasses.replace`` refuses a change that leaves an option without effect: λ = 0
        where there is an h_max.
        """
        options = SimpleNamespace(**{**vars(self), **changes})
        idle = {name for names, _ in unread(options) for name in names} - changes.keys()
        defaults: dict[str, Any] = {f.name: f.default for f in fields(self) if f.name in idle}
        return replace(self, **defaults, **changes)

    @property
    def keep(self) -> Keep:
        return required_keep(self.engine, self.active == "bridges" and self.bridge_rule != "random")

    @property
    def combines(self) -> bool:
        return self.guidance_gradient == "combined"

    def steers(self, clock: Clock) -> bool:
        return self._is_due(clock) and may_compete(clock, self.candidates, self.rho)

    def _is_due(self, clock: Clock) -> bool:
        return clock.index % self.every == 0

    def score(self, step: Step) -> Scores:
        chosen = choose_candidates(step, self.candidates, self.rho, self.tolerance)
        probes = choose_probes(step, chosen, self.probes, self.max_probes)
        # Where nothing is steered the candidates win, the most confident first.
        unsteered = torch.where(chosen, step.stats.top1, -torch.inf)
        due = torch.ones_like(step.budget, dtype=torch.bool)
        if self.every > 1:
            due = step.of_rows(self._is_due).squeeze(1).bool()
        recalls = self.every > 1 and self.between == "last"
        if recalls:
            last = by_last_scores(step, unsteered)
            unsteered = torch.where(due.unsqueeze(1), unsteered, last)
        # A row steers where it has a choice to make and a future to make it for.
        steered = (chosen.sum(dim=1) > step.budget) & probes.any(dim=1) & ~self._is_sure(step)
        steered = steered & due
        chosen, probes = chosen & steered.unsqueeze(1), probes & steered.unsqueeze(1)
        slots = pad_rows(chosen)
        # A row that steers has candidates: whether one does shows without another wait.
        if not slots.shape[1]:
            if recalls:
                remember_scores(step, torch.full_like(unsteered, -torch.inf), due)
            return Scores(unsteered)
        request = GradientRequest(
            candidates=_at(step.positions, slots),
            probes=_at(step.positions, pad_rows(probes)),
            active=torch.empty(0, dtype=torch.int64),
            alpha=self.alpha,
            context=self.context,
            engine=self.engine,
            subtract_self=self.probes == "masked_minus_self",
            top_k=self.top_k,
            revealed=step.budget,
        )
        active, forwards = choose_active(
            step, request, steered, self.active, self.bridges, self.bridge_rule
        )
        request = replace(request, active=active)
        gradient = quadrature_gradient(step.denoiser, step.prediction, request, self.quadrature)
        scored = tis_scores(
            gradient.gradient,
            gradient.delta,
            step.stats.entropy,
            slots,
            step.remaining,
            vocabulary=step.denoiser.facts.vocab_size,
            gate=self.gate,
            penalty=self.penalty,
            floor=self.floor,
            anneal=self.penalty_anneal,
            normalise=self.normalise,
        )
        score = scored.score
        if self.certainty:
            score = score + self.certainty * step.stats.top1.log()
        parts = {
            "tis": scored.influence,
            "candidate": chosen,
            "probe": probes,
            "gate": scored.gate,
            "penalty": scored.penalty,
        }
        cost = StepCost(
            forwards=(steered * (forwards + gradient.forwards)).double(),
            backwards=(steered * gradient.backwards).double(),
            rows=(steered * (gradient.replayed_rows + gradient.backward_rows)).double(),
        )
        if self.lookahead:
            decision = decide_close(
                step, score, chosen, self.lookahead, self.close, self.lookahead_tokens
            )
            if decision is not None:
                score, cost = decision.values, cost + decision.cost
                parts["shortlist"] = decision.shortlist
        if recalls:
            remember_scores(step, score, due)
        values = torch.where(steered.unsqueeze(1), score, unsteered.to(score.dtype))
        return Scores(values, parts, cost, scored=steered)

    def _is_sure(self, step: Step) -> Tensor:
        """bool (B,), rows whose greedy choice needs no second thought."""
        if self.sure is None:
            return torch.zeros_like(step.budget, dtype=torch.bool)
        return least_of_greedy(step) >= self.sure


def _at(positions: Tensor, slots: Tensor) -> Tensor:
    """``positions`` (B, P) at the ``slots`` (B, N), padded with −1."""
    return torch.where(slots < 0, -1, positions.gather(1, slots.clamp_min(0)))
