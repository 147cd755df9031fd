"""Measuring fidelity over canvases, mask fractions and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import boe
from boe.denoisers.attention_denoiser import AttentionDenoiser
from boe.denoisers.base import Denoiser
from boe.evaluate.bootstrap import mean_interval, resampling_weights
from boe.evaluate.environment import environment
from boe.evaluate.fidelity.ranks import regret, spearman
from boe.evaluate.fidelity.scores import (
    FirstStep,
    candidate_chooser,
    first_steps,
    scoring_sampler,
)
from boe.evaluate.fidelity.study import Fidelity, FidelityStudy, ScoreFidelity, TheoremCheck
from boe.evaluate.fidelity.truth import TRUTHS, Truth, true_drops
from boe.evaluate.fingerprint import fingerprint, short_digest
from boe.evaluate.store import RecordStore

_LEAST_CANDIDATES = 3
_TIS = " [tis]"


def measure_fidelity(
    study: FidelityStudy,
    denoiser: Denoiser,
    canvases: Callable[[float], Sequence[Tensor]],
    *,
    store: RecordStore | None = None,
    on_canvas: Callable[[float], None] = lambda fraction: None,
) -> Fidelity:
    """Rank the candidates of every canvas by every score, and by what is true.

    Ctrl-C ends it early and returns what is there.

    Args:
        canvases: the study's canvases with a given fraction of masks, int64 (L,).
        store: where results are kept; in memory by default.
        on_canvas: called after each.

    Raises:
        TypeError: the denoiser cannot be run from embeddings.
    """
    if not isinstance(denoiser, AttentionDenoiser):
        raise TypeError(
            f"fidelity needs a denoiser that runs from embeddings, got {type(denoiser).__name__}"
        )
    store = RecordStore() if store is None else store
    where, identity = environment(), fingerprint(denoiser)
    results: dict[float, list[dict[str, Any]]] = {fraction: [] for fraction in study.fractions}
    complete = False
    try:
        for fraction in study.fractions:
            made = list(canvases(fraction))
            key = _key(study, fraction, identity)
            stored = store.results(key)
            for number, canvas in enumerate(made):
                if number not in stored:
                    row = _measure_one(study, denoiser, canvas, number)
                    store.append(key, [{"item": number, "canvas": short_digest(canvas), **row}])
                row = store.results(key)[number]
                if row["canvas"] != short_digest(canvas):
                    raise ValueError(
                        f"the stored results are of another canvas {number}: start a new file"
                    )
                results[fraction].append(row)
                on_canvas(fraction)
        complete = True
    except KeyboardInterrupt:
        pass
    usable = {
        fraction: [row for row in rows if row["scores"]] for fraction, rows in results.items()
    }
    names = _shown([row for rows in usable.values() for row in rows])
    scores, checks = [], []
    for fraction, rows in usable.items():
        if rows:
            scores += _summaries(fraction, rows, names)
            checks.append(_theorem(fraction, rows))
    return Fidelity(study, where, identity, complete, tuple(scores), tuple(checks))


def _key(study: FidelityStudy, fraction: float, identity: str) -> dict[str, Any]:
    samplers = {
        spec: repr(scoring_sampler(spec, study.candidates, study.rho)) for spec in study.scores
    }
    shared = {
        name: value
        for name, value in study.as_json().items()
        if name not in ("scores", "fractions", "canvases")
    }
    base = {"kind": "fidelity", "boe": boe.__version__, "denoiser": identity}
    return {**base, **shared, "samplers": samplers, "fraction": fraction}


def _measure_one(
    study: FidelityStudy, denoiser: AttentionDenoiser, canvas: Tensor, number: int
) -> dict[str, Any]:
    """One canvas's row; without scores if it has too few candidates, or no probes."""
    chooser = candidate_chooser(study.candidates, study.rho)
    (chosen_step,) = first_steps(denoiser, [canvas], chooser, [number], study.seed)
    flags = chosen_step.parts.get("candidate", {})
    candidates = [position for position, flag in flags.items() if flag]
    masks = int((canvas == denoiser.facts.mask_id).sum())
    if len(candidates) < _LEAST_CANDIDATES or len(candidates) == masks:
        return {"masks": masks, "candidates": len(candidates), "scores": {}}
    truth = true_drops(denoiser, canvas, candidates, study.truth)
    scores: dict[str, dict[str, Any]] = {}
    for spec in study.scores:
        sampler = scoring_sampler(spec, study.candidates, study.rho)
        (step,) = first_steps(denoiser, [canvas], sampler, [number], study.seed)
        for name, values in _ranked(spec, step, candidates).items():
            scores[name] = {"cost": step.cost, **_agreement(values, truth)}
    gap = (truth.first_order.unsqueeze(0) - truth.first_order.unsqueeze(1)).abs()
    pairs = len(candidates) * (len(candidates) - 1)
    return {
        "masks": masks,
        "candidates": len(candidates),
        "scores": scores,
        "drop": truth.drops["relaxed_probes"].tolist(),
        "first_order": truth.first_order.tolist(),
        "midpoint": truth.midpoint.tolist(),
        "curvature": truth.curvature.tolist(),
        "ordered": float((gap > truth.curvature.max()).sum()) / pairs,
        "mass": float(truth.mass.mean()),
    }


def _ranked(spec: str, step: FirstStep, candidates: list[int]) -> dict[str, Tensor]:
    """The sampler's ranking of the candidates, and its bare TIS where it has one."""
    values = torch.tensor([step.scores[k] for k in candidates], dtype=torch.float64)
    if not bool(values.isfinite().all()):
        raise ValueError(f"{spec} does not score all candidates")
    ranked = {spec: values}
    if "tis" in step.parts:
        tis = torch.tensor([step.parts["tis"][k] for k in candidates], dtype=torch.float64)
        ranked[spec + _TIS] = tis
    return ranked


def _agreement(values: Tensor, truth: Truth) -> dict[str, Any]:
    return {
        "spearman": {name: spearman(values, truth.drops[name]) for name in TRUTHS},
        "regret": {name: regret(values, truth.drops[name]) for name in TRUTHS},
    }


def _shown(rows: list[dict[str, Any]]) -> list[str]:
    """The scores' names; a bare TIS only where its sampler ranks by anything else."""

    def bare(name: str) -> bool:
        own = name.removesuffix(_TIS)
        return own != name and all(
            r["scores"].get(name) in (None, r["scores"].get(own)) for r in rows
        )

    return [name for name in dict.fromkeys(n for r in rows for n in r["scores"]) if not bare(name)]


def _summaries(
    fraction: float, rows: list[dict[str, Any]], names: Sequence[str]
) -> list[ScoreFidelity]:
    found = []
    for name in names:
        having = [row["scores"][name] for row in rows if name in row["scores"]]
        if not having:
            continue
        weights = resampling_weights(len(having))
        correlations = {truth: [score["spearman"][truth] for score in having] for truth in TRUTHS}
        found.append(
            ScoreFidelity(
                score=name,
                fraction=fraction,
                canvases=len(having),
                spearman={truth: _mean(values) for truth, values in correlations.items()},
                spearman_interval={
                    truth: mean_interval(values, weights) for truth, values in correlations.items()
                },
                regret={
                    truth: _mean([score["regret"][truth] for score in having]) for truth in TRUTHS
                },
                cost=_mean([score["cost"] for score in having]),
            )
        )
    return found


def _theorem(fraction: float, rows: list[dict[str, Any]]) -> TheoremCheck:
    def all_of(name: str) -> Tensor:
        return torch.tensor([v for row in rows for v in row[name]], dtype=torch.float64)

    drop, curvature = all_of("drop"), all_of("curvature")
    remainder = (drop - all_of("first_order")).abs()
    # The forwards' own rounding must not decide where both sides are nearly 0.
    slack = 1e-6 * drop.abs().amax()
    return TheoremCheck(
        fraction=fraction,
        candidates=len(drop),
        drop=float(drop.mean()),
        remainder=float(remainder.mean()),
        midpoint_remainder=float((drop - all_of("midpoint")).abs().mean()),
        bound=float(curvature.mean()) / 2.0,
        within=float((remainder <= curvature / 2.0 + slack).double().mean()),
        ordered=_mean([row["ordered"] for row in rows]),
        mass=_mean([row["mass"] for row in rows]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
