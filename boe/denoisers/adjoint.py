"""The engines that differentiate the probes' entropy on active rows (docs/method.md).

Replay runs the active rows again with a graph, against the keys and values that the
forward left; late binding and the dense reference go back through the graph of a whole
forward. All three give the same gradient wherever their forwards agree.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from boe.denoisers.asking_rows import AskingRows
from boe.denoisers.attention_modes import LayerCall, Plain, Recording, Replaying, StopGradient
from boe.denoisers.base import (
    EntropyGradient,
    GradientRequest,
    Prediction,
    UnsupportedModel,
    slots_of,
    take_rows,
)
from boe.denoisers.guided import branches_of
from boe_kernels import DeferredRows, entropy_stats, inject_soft_embeddings

if TYPE_CHECKING:
    from boe.denoisers.attention_denoiser import AttentionDenoiser


def replay_gradient(
    denoiser: AttentionDenoiser, prediction: Prediction, request: GradientRequest
) -> EntropyGradient:
    """Gradient from the active rows alone: |A| rows forward, |A| rows backward.

    Of a guided prediction, as many in each branch. Sequences without active rows are left
    out of the batch.
    """
    seats, asks, flags = _candidate_seats(request, prediction.canvas.length)
    count, batch = sum(flags), len(flags)
    size = denoiser.replay_batch(count, batch)
    if count == 0 or size == batch:
        surrogate = denoiser.for_surrogate(prediction, request)
        return _replay(surrogate, prediction, request, seats)
    rows = AskingRows.of(asks, flags, size)
    prediction, request = rows.prediction(prediction), rows.request(request)
    surrogate = denoiser.for_surrogate(prediction, request)
    return rows.in_batch(_replay(surrogate, prediction, request, seats[rows.index]))


def _replay(
    denoiser: AttentionDenoiser, prediction: Prediction, request: GradientRequest, seats: Tensor
) -> EntropyGradient:
    """The replay of a whole batch; ``seats`` (B, C): the candidates among the active rows."""
    facts, canvas = denoiser.facts, prediction.canvas
    active = request.active
    compact: list[Tensor] = []
    contexts: list[list[LayerCall]] = []
    weights: list[float] = []
    forwards = 0
    delta = prediction.logits[:, :0]
    for branch, weight in branches_of(prediction):
        # Soft writes come from the distribution that tokens are written from.
        written = replace(prediction, canvas=branch.canvas, state=branch.state)
        layers: list[LayerCall] = branch.state.layers
        if request.context == "full" and (request.alpha != 0.0 or facts.time_conditioned):
            with torch.no_grad():
                embeds, _ = soft_canvas(denoiser, written, request)
                second = Recording()
                denoiser.run(embeds, second, active[:, :0], canvas=canvas)
            layers, forwards = second.layers, forwards + 1
        rows, delta = _inject(
            denoiser, take_rows(branch.state.embeds, active), seats, written, request
        )
        compact.append(rows)
        contexts.append(layers)
        weights.append(weight)

    def gradient_at(
        embeds: list[Tensor], rows: Tensor, probe_rows: Tensor, local: bool
    ) -> tuple[Tensor, Tensor]:
        leaves = [part.detach().requires_grad_() for part in embeds]
        modes = [Replaying(layers, rows, local=local) for layers in contexts]
        slots = slots_of(probe_rows, rows, canvas.length)
        with torch.enable_grad(), denoiser.replay_products(leaves[0]):
            entropy = denoiser.summed_guided_entropy(
                list(zip(leaves, modes, weights, strict=True)),
                slots,
                position_ids=rows.clamp_min(0),
            )
        # Outside the mode, in which every call of an op would be looked at.
        grads = torch.autograd.grad(entropy, leaves, torch.ones_like(entropy))
        return sum(grads[1:], start=grads[0]), entropy.detach()

    grad, surrogate = gradient_at(compact, active, facts.row_of(request.probes), local=False)
    gradient = _at(grad, seats)
    rows_run = (active >= 0).sum(dim=1)
    if request.subtract_self:
        if facts.logits_shift:
            raise UnsupportedModel(
                "subtract_self needs unshifted logits: in a shifted model a candidate's own "
                "entropy stands in another row"
            )
        own = [take_rows(rows, seats) for rows in compact]
        # The entropy of a candidate that is no probe is not in the sum.
        probed = slots_of(request.candidates, request.probes, canvas.length) >= 0
        probed_rows = torch.where(probed, request.candidates, -1)
        own_grad, _ = gradient_at(own, request.candidates, probed_rows, local=True)
        gradient = gradient - own_grad * (seats >= 0).unsqueeze(-1)
        rows_run = rows_run + (request.candidates >= 0).sum(dim=1)
    passes = len(weights)
    return EntropyGradient(
        _wide(gradient),
        _wide(delta),
        surrogate,
        forwards,
        passes * (1 + request.subtract_self),
        passes * rows_run,
        passes * rows_run,
    )


def graph_gradient(
    denoiser: AttentionDenoiser, prediction: Prediction, request: GradientRequest
) -> EntropyGradient:
    """Gradient through a whole forward: attention sparse ("late") or dense, the rest dense."""
    if request.subtract_self:
        raise ValueError("subtract_self needs engine='replay'")
    denoiser = denoiser.for_surrogate(prediction, request)
    facts, state, canvas = denoiser.facts, prediction.state, prediction.canvas
    seats, _, _ = _candidate_seats(request, canvas.length)
    embeds, delta = soft_canvas(denoiser, prediction, request)
    active_probes = torch.where(
        slots_of(facts.row_of(request.probes), request.active, canvas.length) >= 0,
        request.probes,
        -1,
    )
    forwards = 0
    with torch.enable_grad():
        if request.alpha == 0.0 and not facts.time_conditioned:
            leaf = state.embeds
            state.active.bind(request.active)
            slots = slots_of(active_probes, prediction.positions, canvas.length)
            entropy = entropy_stats(take_rows(state.logits, slots)).entropy
            surrogate = torch.where(slots >= 0, entropy, 0.0).sum(dim=1)
        elif request.context == "frozen":
            lacks = "holds no soft writes" if request.alpha else "is of another time"
            raise ValueError(
                f"context='frozen' at alpha = {request.alpha} needs engine='replay': a graph of "
                f"the current forward {lacks}; use context='full'"
            )
        else:
            forwards = 1
            leaf = embeds.detach().requires_grad_()
            active = DeferredRows()
            active.bind(request.active)
            mode = Plain(active) if request.engine == "late" else StopGradient(active)
            surrogate = denoiser.summed_entropy(
                leaf, mode, facts.row_of(active_probes), canvas=canvas
            )
        (grad,) = torch.autograd.grad(surrogate.sum(), leaf)
    gradient = _at(grad, torch.where(seats >= 0, request.candidates, -1))
    lengths = torch.tensor(canvas.lengths, device=grad.device)
    return EntropyGradient(
        _wide(gradient),
        _wide(delta),
        surrogate.detach(),
        forwards,
        1,
        torch.zeros_like(lengths),
        lengths,
    )


def soft_canvas(
    denoiser: AttentionDenoiser, prediction: Prediction, request: GradientRequest
) -> tuple[Tensor, Tensor]:
    """Embeddings of the whole canvas with the candidates' soft writes, and Δe."""
    embeds = prediction.state.embeds.detach()
    return _inject(denoiser, embeds, request.candidates, prediction, request)


def _inject(
    denoiser: AttentionDenoiser,
    embeds: Tensor,
    slots: Tensor,
    prediction: Prediction,
    request: GradientRequest,
) -> tuple[Tensor, Tensor]:
    """Write the candidates' soft embeddings at ``slots`` (B, C) of ``embeds``; and Δe."""
    place = slots_of(request.candidates, prediction.positions, prediction.canvas.length)
    table = denoiser.embedding_table
    return inject_soft_embeddings(
        embeds,
        slots,
        take_rows(prediction.logits, place),
        table,
        table[denoiser.facts.mask_id],
        request.alpha,
        request.top_k,
        is_logits=True,
        return_delta=True,
    )


def _candidate_seats(request: GradientRequest, length: int) -> tuple[Tensor, Tensor, list[bool]]:
    """Where the candidates stand among the active rows (B, C), which must hold them all;
    and which sequences have active rows: bool (B,), and the same on the host."""
    seats = slots_of(request.candidates, request.active, length)
    outside = ((request.candidates >= 0) & (seats < 0)).any(dim=1)
    asks = (request.active >= 0).any(dim=1)
    # One wait for the device tells both.
    known = torch.stack((outside, asks)).tolist()
    if any(known[0]):
        raise ValueError("active rows must include every candidate's own row")
    return seats, asks, known[1]


def _at(grad: Tensor, slots: Tensor) -> Tensor:
    return take_rows(grad, slots) * (slots >= 0).unsqueeze(-1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
