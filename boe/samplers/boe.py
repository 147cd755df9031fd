"""Backward-on-Entropy steering: reveal what most lowers the entropy of the rest.

One step (docs/method.md): choose candidates C, write each softly into the canvas, sum
the entropies of the probes S, and go back once to the candidates' embeddings. The Token
Influence Score TIS_i = −⟨g_i, Δe_i⟩ (eq. 14 of the TABES paper) predicts by how much
revealing i lowers the probes' entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from boe.denoisers.base import (
    ENGINES,
    BridgeRule,
    Context,
    Engine,
    GradientRequest,
    Keep,
    required_keep,
)
from boe.samplers.base import Clock, Sampler, Scores, Step, StepCost, top_positions
from boe.samplers.candidates import check_candidates, choose_candidates, least_of_greedy
from boe.samplers.last_scores import by_last_scores, remember_scores
from boe_kernels import pad_rows, tis_scores
from boe_kernels.tis_scores import GATES as GATES
from boe_kernels.tis_scores import NORMALISATIONS as NORMALISATIONS

PROBE_SETS = ("complement", "masked", "masked_minus_self")
ACTIVE_SETS = ("candidates", "candidates_probes", "masked", "bridges", "all")
GUIDANCE_GRADIENTS = ("conditional", "combined")
BETWEEN = ("last", "confidence")
BRIDGE_RULES = ("received_paid", "received", "hidden_change", "random")


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

    name = "boe"

    def __post_init__(self) -> None:
        for field, choices in (
            ("probes", PROBE_SETS),
            ("active", ACTIVE_SETS),
            ("bridge_rule", BRIDGE_RULES),
            ("context", ("frozen", "full")),
            ("gate", GATES),
            ("normalise", NORMALISATIONS),
            ("engine", ENGINES),
            ("guidance_gradient", GUIDANCE_GRADIENTS),
            ("between", BETWEEN),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field} must be one of {', '.join(choices)}, got {getattr(self, field)!r}"
                )
        check_candidates(self.candidates, self.rho, self.tolerance)
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        if not 0.0 <= self.bridges <= 1.0:
            raise ValueError(f"bridges must be in [0, 1], got {self.bridges}")
        if self.sure is not None and not 0.0 <= self.sure <= 1.0:
            raise ValueError(f"sure must be in [0, 1], got {self.sure}")
        for field in ("certainty", "penalty", "floor"):
            value = getattr(self, field)
            if not (value >= 0.0 and math.isfinite(value)):
                raise ValueError(f"{field} must be finite and not negative, got {value}")
        for field in ("max_probes", "top_k"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} must be at least 1, got {value}")
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        if self.active == "candidates" and self.probes == "complement":
            raise ValueError(
                "the zero-gradient combination: with active='candidates' and "
                "probes='complement' no probe's row is active, so the entropy of every probe is "
                "a constant and every score is exactly 0; use active='candidates_probes'"
            )
        if self.candidates == "all" and self.probes == "complement":
            raise ValueError(
                "candidates='all' leaves no probes in their complement; "
                "use probes='masked' or 'masked_minus_self'"
            )
        if self.active == "bridges" and self.bridge_rule == "hidden_change" and self.alpha == 0.0:
            raise ValueError(
                "bridge_rule='hidden_change' needs alpha > 0: at 0 no hidden state changes"
            )
        if self.guidance_gradient == "combined":
            if self.engine != "replay":
                raise ValueError(
                    "guidance_gradient='combined' needs engine='replay', "
                    f"got engine={self.engine!r}"
                )
            if self.active == "bridges" and self.bridge_rule != "random":
                raise ValueError(
                    f"bridge_rule={self.bridge_rule!r} ranks the rows of one branch; with "
                    "guidance_gradient='combined' use another active set, or bridge_rule='random'"
                )
        if self.engine != "replay":
            if self.alpha > 0.0 and self.context == "frozen":
                raise ValueError(
                    f"context='frozen' at alpha = {self.alpha} needs engine='replay', "
                    f"got engine={self.engine!r}; use context='full'"
                )
            if self.active == "bridges" or self.probes == "masked_minus_self":
                raise ValueError(
                    "active='bridges' and probes='masked_minus_self' need engine='replay', "
                    f"got engine={self.engine!r}"
                )

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
        return replace(presets[name], **changes)

    @property
    def keep(self) -> Keep:
        return required_keep(self.engine, self.active == "bridges" and self.bridge_rule != "random")

    @property
    def combines(self) -> bool:
        return self.guidance_gradient == "combined"

    def steers(self, clock: Clock) -> bool:
        return clock.index % self.every == 0

    def score(self, step: Step) -> Scores:
        chosen = choose_candidates(step, self.candidates, self.rho, self.tolerance)
        probes = self._choose_probes(step, chosen)
        # Where nothing is steered the candidates win, the most confident first.
        unsteered = torch.where(chosen, step.stats.top1, -torch.inf)
        due = torch.ones_like(step.budget, dtype=torch.bool)
        if self.every > 1:
            due = step.of_rows(self.steers).squeeze(1).bool()
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
        active, forwards = self._choose_active(step, request, steered)
        gradient = step.denoiser.entropy_gradient(step.prediction, replace(request, active=active))
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
        if recalls:
            remember_scores(step, score, due)
        values = torch.where(steered.unsqueeze(1), score, unsteered.to(score.dtype))
        return Scores(
            values,
            {
                "tis": scored.influence,
                "candidate": chosen,
                "probe": probes,
                "gate": scored.gate,
                "penalty": scored.penalty,
            },
            StepCost(
                forwards=(steered * (forwards + gradient.forwards)).double(),
                backwards=(steered * gradient.backwards).double(),
                rows=(steered * (gradient.replayed_rows + gradient.backward_rows)).double(),
            ),
            scored=steered,
        )

    def _is_sure(self, step: Step) -> Tensor:
        """bool (B,), rows whose greedy choice needs no second thought."""
        if self.sure is None:
            return torch.zeros_like(step.budget, dtype=torch.bool)
        return least_of_greedy(step) >= self.sure

    def _choose_probes(self, step: Step, chosen: Tensor) -> Tensor:
        # What the answer will not hold needs no certainty.
        masked = step.masked if step.discarded is None else step.masked & ~step.discarded
        probes = masked & ~chosen if self.probes == "complement" else masked
        if self.max_probes is None:
            return probes
        limit = torch.full_like(step.budget, self.max_probes)
        return top_positions(step.stats.entropy, probes, limit)

    def _choose_active(
        self, step: Step, request: GradientRequest, steered: Tensor
    ) -> tuple[Tensor, int]:
        """Active rows, int64 (B, A) ascending and padded, and the forwards it took."""
        canvas, facts = step.canvas, step.denoiser.facts
        valid = canvas.valid & steered.unsqueeze(1)
        if self.active == "all":
            return pad_rows(valid), 0
        members = [request.candidates]
        if self.active == "candidates_probes":
            members.append(facts.row_of(request.probes))
        elif self.active in ("masked", "bridges"):
            masked = torch.where(step.masked & steered.unsqueeze(1), step.positions, -1)
            members += [masked, facts.row_of(masked)]
        active = torch.zeros(canvas.batch, canvas.length + 1, dtype=torch.bool, device=valid.device)
        for rows in members:
            active.scatter_(1, torch.where(rows < 0, canvas.length, rows), True)
        active = active[:, :-1]
        if self.active != "bridges":
            return pad_rows(active), 0
        others = valid & ~active
        forwards = 0
        if self.bridge_rule == "random":
            rank = step.uniform(step.canvas.valid)
        else:
            rule: BridgeRule = self.bridge_rule  # type: ignore[assignment]
            rank, forwards = step.denoiser.bridge_scores(step.prediction, request, rule)
        wanted = (others.sum(dim=1) * self.bridges).ceil().to(torch.int64)
        return pad_rows(active | top_positions(rank, others, wanted)), forwards


def _at(positions: Tensor, slots: Tensor) -> Tensor:
    """``positions`` (B, P) at the ``slots`` (B, N), padded with −1."""
    return torch.where(slots < 0, -1, positions.gather(1, slots.clamp_min(0)))
