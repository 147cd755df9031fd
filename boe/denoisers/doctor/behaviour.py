"""Checks of a denoiser by running it on toy canvases."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from boe.canvas import Canvas
from boe.denoisers.attention_denoiser import AttentionDenoiser, RecordedForward
from boe.denoisers.base import (
    Engine,
    EntropyGradient,
    GradientRequest,
    UnsupportedModel,
    required_keep,
    slots_of,
)
from boe.denoisers.checkpoint import first_line
from boe.denoisers.doctor.finding import Finding, size_text
from boe.denoisers.doctor.peak_memory import PeakMemory
from boe_kernels import pad_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CLEAR_NATS = 0.1
_TOY_LENGTHS = (14, 9)
_REPEATS = 3


def check_tied_head(denoiser: AttentionDenoiser, declared: object) -> Finding:
    """Whether the head is tied to the embeddings as the config says (``None``: it is silent)."""
    head: nn.Linear | None = denoiser.linear_head
    if head is None:
        return Finding("head", "ok", "not a plain linear map; logits come from the model itself")
    table = denoiser.embedding_table
    shared = head.weight.data_ptr() == table.data_ptr()
    if declared and not shared:
        detail = "the config ties the head to the embeddings, but it has weights of its own"
        return Finding("head", "failed", detail, "correct tie_word_embeddings in config.json")
    equal = shared or (head.weight.shape == table.shape and torch.equal(head.weight, table))
    if equal and declared is False and not shared:
        detail = "the head equals the embedding table, but the config says that it is untied"
        return Finding("head", "warning", detail, "check that the head's weights were saved")
    return Finding("head", "ok", "tied to the embeddings" if shared else "weights of its own")


def check_forward(denoiser: AttentionDenoiser) -> Finding:
    """Finite logits, which do not depend on what else is in the batch."""
    canvas, positions = _toy_canvas(denoiser, _TOY_LENGTHS)
    try:
        logits = denoiser.predict(canvas, positions).logits[positions >= 0]
    except UnsupportedModel as refusal:
        advice = "decode sequences of one length together, without padding"
        return Finding("forward", "failed", str(refusal), advice)
    allowed = torch.ones(denoiser.facts.vocab_size, dtype=torch.bool, device=denoiser.device)
    allowed[list(denoiser.facts.suppressed_ids)] = False
    if not bool(logits[:, allowed].isfinite().all()):
        advice = "the weights are damaged, or the dtype is too narrow: try --dtype float32"
        return Finding("forward", "failed", "logits are not finite", advice)
    spread = float(logits[:, allowed].float().std())
    together = denoiser.predict(canvas, positions).logits[1]
    count = int((positions[1] >= 0).sum())
    alone = denoiser.predict(canvas.select([1]), positions[1:, :count]).logits[0]
    error = float((together[:count, allowed] - alone[:, allowed]).float().abs().max()) / spread
    detail = f"finite, spread {spread:.3g}; alone and in a padded batch within {error:.1e} of it"
    if error > _tolerance(denoiser):
        advice = "decode sequences of one length together, without padding"
        return Finding("forward", "failed", detail, advice)
    return Finding("forward", "ok", detail)


def check_shift(
    denoiser: AttentionDenoiser, words: PreTrainedTokenizerBase | None, text: str
) -> Finding:
    """Whether row j or row j − 1 predicts position j, by which reading fits a text better."""
    facts = denoiser.facts
    if words is None:
        return Finding("shift", "unknown", "no tokenizer to read a text with", "give --tokenizer")
    ids = torch.tensor(words(text, add_special_tokens=False).input_ids, device=denoiser.device)
    ids = ids[: facts.max_length]
    if len(ids) < 8 or int(ids.max()) >= facts.vocab_size:
        return Finding("shift", "unknown", "the text has too few known tokens", "give --text")
    other = copy.copy(denoiser)
    other.facts = replace(facts, logits_shift=-1 - facts.logits_shift)
    nats = []
    for reader in (denoiser, other):
        total = 0.0
        for k in range(4):
            positions = torch.arange(k + 1, len(ids), 4, device=ids.device)
            masked = ids.clone()
            masked[positions] = facts.mask_id
            logits = reader.predict(Canvas.of(masked), positions.unsqueeze(0)).logits[0]
            logp = logits.double().log_softmax(dim=-1)
            total += float(logp.gather(1, ids[positions].unsqueeze(1)).clamp_min(-100).sum())
        nats.append(-total / (len(ids) - 1))
    declared = f"shift {facts.logits_shift}: {nats[0]:.2f} nats a token"
    detail = f"{declared}; shift {other.facts.logits_shift}: {nats[1]:.2f}"
    chance = math.log(facts.vocab_size - len(set(facts.suppressed_ids)))
    if min(nats) > chance:
        # A model that knows nothing of the text fits it by accident better one way.
        advice = "untrained weights, or a text in another language: give --text"
        return Finding("shift", "unknown", f"{detail}; chance {chance:.2f}", advice)
    if nats[1] < nats[0] - _CLEAR_NATS:
        advice = f"build the denoiser with logits_shift={other.facts.logits_shift}"
        return Finding("shift", "failed", detail, advice)
    if nats[0] < nats[1] - _CLEAR_NATS:
        return Finding("shift", "ok", detail)
    advice = "untrained weights, or a text in another language: give --text"
    return Finding("shift", "unknown", f"{detail}: too close to tell", advice)


def check_gradients(denoiser: AttentionDenoiser) -> Finding:
    """The engines against the dense gradient on a toy canvas, at α = 0."""
    canvas, positions = _toy_canvas(denoiser, _TOY_LENGTHS)
    request = _request(denoiser, canvas, positions)
    engines: list[Engine] = ["late"] if denoiser.replay_refusal else ["replay", "late"]
    dense = _gradient(denoiser, canvas, positions, replace(request, engine="dense")).gradient
    parts, worst = [], 0.0
    for engine in engines:
        mine = _gradient(denoiser, canvas, positions, replace(request, engine=engine)).gradient
        error = float((mine - dense).norm() / dense.norm().clamp_min(1e-30))
        parts.append(f"{engine} {error:.1e}")
        worst = max(worst, error)
    whole = replace(request, active=pad_rows(canvas.valid), engine=engines[0])
    untruncated = _gradient(denoiser, canvas, positions, whole).gradient
    cosine = float(torch.cosine_similarity(dense.flatten(), untruncated.flatten(), dim=0))
    detail = f"off the dense one by {', '.join(parts)}; cosine to all rows' {cosine:.3f}"
    if not worst <= _tolerance(denoiser):
        return Finding("gradient", "failed", detail, "use engine='dense', and report this model")
    if denoiser.replay_refusal:
        advice = "use engine='late' or 'dense'"
        return Finding("gradient", "warning", f"{detail}; cannot be replayed", advice)
    return Finding("gradient", "ok", detail)


def check_step(denoiser: AttentionDenoiser, batch: int, length: int) -> Finding:
    """Time and memory of a forward and of a step on a canvas that is half masked."""
    check = f"step {batch}x{length}"
    longest = denoiser.facts.max_length
    if longest is not None and length > longest:
        detail = f"the model takes {longest} positions"
        return Finding(check, "failed", detail, "ask for a shorter canvas")
    canvas, positions = _toy_canvas(denoiser, (length,) * batch)
    engine: Engine = "late" if denoiser.replay_refusal else "replay"
    request = replace(_request(denoiser, canvas, positions), engine=engine)
    memory = PeakMemory(denoiser.device)
    try:
        forward = _seconds(denoiser, lambda: denoiser.predict(canvas, positions))
        step = _seconds(denoiser, lambda: _gradient(denoiser, canvas, positions, request))
    except torch.OutOfMemoryError as error:
        return Finding(
            check, "failed", first_line(error), "a smaller batch, a shorter canvas or bf16"
        )
    weights = sum(p.nbytes for p in getattr(denoiser, "model", nn.Module()).parameters())
    detail = (
        f"forward {1e3 * forward:.1f} ms, {engine} step {1e3 * step:.1f} ms "
        f"({step / forward:.2f} forwards); weights {size_text(weights)}"
    )
    state = denoiser.predict(canvas, positions, "keys_values").state
    if isinstance(state, RecordedForward):
        kept = sum(layer.k.nbytes + layer.v.nbytes for layer in state.layers)
        detail += f", keys and values {size_text(kept)}"
    if (peak := memory.so_far()) is not None:
        whose = "" if denoiser.device.type == "cuda" else " of the process"
        detail += f", peak {size_text(peak)}{whose}"
    return Finding(check, "ok", detail)


def _toy_canvas(denoiser: AttentionDenoiser, lengths: tuple[int, ...]) -> tuple[Canvas, Tensor]:
    """Random ids that may be written, every second one masked; and the masked positions."""
    facts = denoiser.facts
    generator = torch.Generator().manual_seed(0)
    usable = torch.ones(facts.vocab_size, dtype=torch.bool)
    usable[list(facts.suppressed_ids)] = False
    words = usable.nonzero().flatten()
    rows = []
    for length in lengths:
        ids = words[torch.randint(len(words), (length,), generator=generator)]
        ids[1::2] = facts.mask_id
        rows.append(ids.to(denoiser.device))
    canvas = Canvas.of(rows)
    return canvas, pad_rows(canvas.masked(facts.mask_id))


def _request(denoiser: AttentionDenoiser, canvas: Canvas, positions: Tensor) -> GradientRequest:
    """The first third of each row's masks as candidates, the others as probes."""
    facts = denoiser.facts
    count = (positions >= 0).sum(dim=1, keepdim=True)
    place = torch.arange(positions.shape[1], device=positions.device)
    chosen = place < (count + 2) // 3
    candidates = torch.where(chosen, positions, -1)
    probes = torch.where(chosen, -1, positions)
    members = torch.cat([candidates, facts.row_of(probes)], dim=1)
    everything = torch.arange(canvas.length, device=positions.device).expand(canvas.batch, -1)
    active = pad_rows(slots_of(everything, members, canvas.length) >= 0)
    context = "full" if facts.time_conditioned else "frozen"
    return GradientRequest(candidates, probes, active, context=context)  # type: ignore[arg-type]


def _gradient(
    denoiser: AttentionDenoiser, canvas: Canvas, positions: Tensor, request: GradientRequest
) -> EntropyGradient:
    keep = required_keep(request.engine, bridges=False)
    return denoiser.entropy_gradient(denoiser.predict(canvas, positions, keep), request)


def _seconds(denoiser: AttentionDenoiser, call: Callable[[], object]) -> float:
    """Median wall time of a few calls after one that warms up."""
    taken = []
    for _ in range(1 + _REPEATS):
        began = time.perf_counter()
        call()
        if denoiser.device.type == "cuda":
            torch.cuda.synchronize(denoiser.device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def _tolerance(denoiser: AttentionDenoiser) -> float:
    """Norms and rotations are float32 at best, so that float64 is held to no more."""
    return max(torch.finfo(denoiser.embedding_table.dtype).eps, torch.finfo().eps) ** 0.5
