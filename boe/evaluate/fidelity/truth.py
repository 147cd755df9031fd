"""What revealing each candidate truly does to the entropy of the other masks.

Two truths. *Relaxed*, the quantity of the paper's Theorem 3.1: candidate i alone gets its
soft write e_m + Δe_i, found by a forward each. *Discrete*, the expectation over the tokens
that would be written: a forward for each of a candidate's likely tokens. And two sums: over
the probes S = M∖C, and over all other masks M∖{i}.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers.attention_denoiser import AttentionDenoiser
from boe.denoisers.attention_modes import Plain
from boe.denoisers.base import GradientRequest, Keep, Prediction
from boe_kernels import entropy_stats

TRUTHS = ("relaxed_probes", "relaxed_others", "discrete_probes", "discrete_others")


@dataclass(frozen=True)
class TruthOptions:
    """How thoroughly the truth is sought.

    Attributes:
        mass: tokens of a candidate are enumerated, the likeliest first, until they have so
            much of its probability,
        max_tokens: but no more than so many; what they have is renormalised.
        grid: points in [0, 1], both ends included, at which a soft write is tried, odd and at
            least 3; Theorem 3.1's curvature is the largest second difference between them.
        chunk: canvases per forward.
    """

    mass: float = 0.99
    max_tokens: int = 16
    grid: int = 9
    chunk: int = 32

    def __post_init__(self) -> None:
        if not 0.0 < self.mass <= 1.0:
            raise ValueError(f"mass must be in (0, 1], got {self.mass}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.grid < 3 or self.grid % 2 == 0:
            raise ValueError(f"grid must be odd and at least 3, got {self.grid}")
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")


@dataclass(frozen=True)
class Truth:
    """The true drops of one canvas's N candidates, float64 nats.

    Attributes:
        drops: by name of :data:`TRUTHS`, (N,).
        first_order: −f_i'(0) for f_i(α), the probes' entropy with candidate i alone at
            e_m + α·Δe_i: eq. 14 with the dense gradient, (N,).
        midpoint: −f_i'(½), by central difference, (N,).
        curvature: max |f_i''| over the grid, (N,): M of Theorem 3.1, estimated from below.
        mass: the probability that the enumerated tokens have, (N,).
        forwards: canvases that were run.
    """

    drops: dict[str, Tensor]
    first_order: Tensor
    midpoint: Tensor
    curvature: Tensor
    mass: Tensor
    forwards: int


@torch.no_grad()
def true_drops(
    denoiser: AttentionDenoiser,
    canvas: Tensor,
    candidates: list[int],
    options: TruthOptions | None = None,
) -> Truth:
    """Find out what revealing each of ``candidates`` alone does to ``canvas`` (L,).

    Raises:
        ValueError: no candidate, one that is not masked, or no other mask.
    """
    options = TruthOptions() if options is None else options
    ids = canvas.to(denoiser.device).unsqueeze(0)
    masked = (ids[0] == denoiser.facts.mask_id).nonzero().flatten()
    chosen = torch.tensor(candidates, device=ids.device)
    if not candidates or not bool(torch.isin(chosen, masked).all()):
        raise ValueError(f"candidates must be masked positions, at least one, got {candidates}")
    probe = ~torch.isin(masked, chosen)
    if not bool(probe.any()):
        raise ValueError("every mask is a candidate: there are no probes")
    own = masked.unsqueeze(0) == chosen.unsqueeze(1)  # (N, M)
    sums = torch.stack([probe.expand_as(own), ~own]).double()  # probes, others

    prediction, gradient, delta, ahead = _linearise(denoiser, ids, masked, chosen, probe)
    first_order = -(gradient.double() * delta.double()).sum(dim=-1)
    alphas = torch.linspace(0.0, 1.0, options.grid, dtype=torch.float64)
    sampled = []
    for alpha in alphas.tolist():
        entropy = _soft(ahead, ids, masked, chosen, delta, alpha, options.chunk)
        sampled.append(torch.einsum("snm,nm->sn", sums, entropy))
    f = torch.stack(sampled)  # (grid, sums, N)
    step = float(alphas[1] - alphas[0])
    probes_f, middle = f[:, 0], options.grid // 2
    second = probes_f[:-2] - 2.0 * probes_f[1:-1] + probes_f[2:]

    before = entropy_stats(prediction.logits).entropy[0].double()  # (M,)
    now = torch.einsum("snm,m->sn", sums, before)
    after, mass, tried = _discrete(denoiser, ids, masked, chosen, prediction, options)
    then = torch.einsum("snm,nm->sn", sums, after)
    drops = {
        "relaxed_probes": f[0, 0] - f[-1, 0],
        "relaxed_others": f[0, 1] - f[-1, 1],
        "discrete_probes": now[0] - then[0],
        "discrete_others": now[1] - then[1],
    }
    return Truth(
        {name: drop.cpu() for name, drop in drops.items()},
        first_order.cpu(),
        ((probes_f[middle - 1] - probes_f[middle + 1]) / (2.0 * step)).cpu(),
        (second.abs().amax(dim=0) / step**2).cpu(),
        mass.cpu(),
        tried + options.grid * len(candidates),
    )


def _linearise(
    denoiser: AttentionDenoiser, ids: Tensor, masked: Tensor, chosen: Tensor, probe: Tensor
) -> tuple[Prediction, Tensor, Tensor, AttentionDenoiser]:
    """The prediction, dense gradients and Δe (N, D), and the denoiser as the surrogate's."""
    replays = denoiser.replay_refusal is None
    keep: Keep = "keys_values" if replays else "dense_graph"
    canvas = Canvas(ids, (ids.shape[1],))
    prediction = denoiser.predict(canvas, masked.unsqueeze(0), keep)
    request = GradientRequest(
        candidates=chosen.unsqueeze(0),
        probes=masked[probe].unsqueeze(0),
        active=torch.arange(ids.shape[1], device=ids.device).unsqueeze(0),
        engine="replay" if replays else "dense",
        context="full",
    )
    result = denoiser.entropy_gradient(prediction, request)
    surrogate = denoiser.for_surrogate(prediction, request)
    return prediction, result.gradient[0], result.delta[0], surrogate


def _soft(
    denoiser: AttentionDenoiser,
    ids: Tensor,
    masked: Tensor,
    chosen: Tensor,
    delta: Tensor,
    alpha: float,
    chunk: int,
) -> Tensor:
    """Entropies (N, M) of the masks, candidate n alone being at e_m + α·Δe."""
    embeds = denoiser.embed(ids)
    parts = []
    for some in torch.arange(len(chosen), device=ids.device).split(chunk):
        written = embeds.repeat(len(some), 1, 1)
        row = torch.arange(len(some), device=ids.device)
        written[row, chosen[some]] += alpha * delta[some].to(written.dtype)
        parts.append(_entropies(denoiser, written, ids.repeat(len(some), 1), masked))
    return torch.cat(parts)


def _discrete(
    denoiser: AttentionDenoiser,
    ids: Tensor,
    masked: Tensor,
    chosen: Tensor,
    prediction: Prediction,
    options: TruthOptions,
) -> tuple[Tensor, Tensor, int]:
    """Expected entropies (N, M) after each candidate is written; mass (N,); canvases run."""
    slots = torch.searchsorted(masked, chosen)
    p = prediction.logits[0, slots].double().softmax(dim=-1)
    sorted_p, tokens = p.sort(dim=-1, descending=True, stable=True)
    sorted_p = sorted_p[:, : options.max_tokens]
    before = sorted_p.cumsum(dim=1) - sorted_p
    kept = (before < options.mass) & (sorted_p > 0)
    mass = (sorted_p * kept).sum(dim=1)
    weight = sorted_p * kept / mass.unsqueeze(1)
    candidate, rank = kept.nonzero(as_tuple=True)
    expected = torch.zeros(len(chosen), len(masked), dtype=torch.float64, device=ids.device)
    for some in torch.arange(len(candidate), device=ids.device).split(options.chunk):
        n, k = candidate[some], rank[some]
        written = ids.repeat(len(some), 1)
        written[torch.arange(len(some), device=ids.device), chosen[n]] = tokens[n, k]
        positions = masked.unsqueeze(0).expand(len(some), -1)
        canvas = Canvas(written, (ids.shape[1],) * len(some))
        entropy = entropy_stats(denoiser.predict(canvas, positions).logits).entropy.double()
        expected.index_add_(0, n, entropy * weight[n, k].unsqueeze(1))
    return expected, mass, len(candidate)


def _entropies(denoiser: AttentionDenoiser, embeds: Tensor, ids: Tensor, masked: Tensor) -> Tensor:
    """Entropies predicted at ``masked`` (M,) from embeddings (N, L, D), float64 (N, M)."""
    rows = denoiser.facts.row_of(masked).unsqueeze(0).expand(len(embeds), -1)
    canvas = Canvas(ids, (ids.shape[1],) * len(ids))
    output = denoiser.run(embeds, Plain(), rows, canvas=canvas)
    return entropy_stats(denoiser.suppress(output.logits)).entropy.double()
