"""Rows that go back to a guess (:class:`boe.samplers.backtracking.Backtrack`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.decoding.batch import BatchState, ready_row
from boe.decoding.rows import Guess, Row
from boe.denoisers.base import Prediction
from boe.samplers.backtracking import Backtrack
from boe.samplers.step import Move, Ready, Step


@dataclass(frozen=True)
class Verdict:
    """What a step says of the rows, one entry for each.

    Attributes:
        prediction: the step's, with no token excluded.
        backtrack: how rows go back.
        wrong: whether what the step writes, or has found written, is wrong.
        guesses: what a row can come back to if this step's write is wrong, unless it is
            certain or made on a canvas that is wrong already.
    """

    prediction: Prediction
    backtrack: Backtrack
    wrong: list[bool]
    guesses: list[Guess | None]


def without_excluded(
    prediction: Prediction, live: list[Row], masked: Tensor, sure: float
) -> tuple[Prediction, Tensor]:
    """The prediction without the tokens that the rows exclude, and which it calls wrong.

    Args:
        masked: bool (B, P), slots of masked positions.

    Returns:
        A prediction, and bool (B,): rows in which the model gives ``sure`` or more to the
        tokens that are excluded at a masked position.
    """
    logits, positions = prediction.logits, prediction.positions
    refuted = torch.zeros(len(live), dtype=torch.bool, device=logits.device)
    excluded = [(k, *pair) for k, row in enumerate(live) for pair in row.excluded]
    if not excluded:
        return prediction, refuted
    rows, where, tokens = torch.tensor(excluded, device=logits.device).T
    here = masked[rows] & (positions[rows] == where.unsqueeze(1))
    found = here.any(dim=1)
    rows, tokens, slots = rows[found], tokens[found], here[found].long().argmax(dim=1)
    log_p = logits[rows, slots].float().log_softmax(dim=-1)
    p = log_p.gather(1, tokens.unsqueeze(1)).squeeze(1).exp()
    mass = torch.zeros(masked.shape, device=logits.device)
    mass = mass.index_put((rows, slots), p, accumulate=True)
    nothing = torch.tensor(-torch.inf, dtype=logits.dtype, device=logits.device)
    left = logits.index_put((rows, slots, tokens), nothing)
    return replace(prediction, logits=left), (mass >= sure).any(dim=1)


def judge(
    backtrack: Backtrack,
    live: list[Row],
    step: Step,
    move: Move,
    seen: Prediction,
    refuted: Tensor,
) -> Verdict:
    """What a step's write looks like, before it is done."""
    canvas, logits = step.canvas, step.prediction.logits
    after = step.written(canvas.ids, move.reveal, move.tokens)
    broken = backtrack.checked()(Canvas(after, canvas.lengths))
    # The least probable token of the write stands for all of it.
    chosen = logits.gather(-1, move.tokens.unsqueeze(-1)).squeeze(-1)
    p = (chosen.float() - step.stats.logsumexp).exp().masked_fill(~move.reveal, torch.inf)
    least, slot = p.min(dim=1)
    at = torch.arange(len(live), device=slot.device)
    token = move.tokens[at, slot]
    rest = logits[at, slot].float().scatter(1, token.unsqueeze(1), -torch.inf).log_softmax(dim=-1)
    second, other = rest.max(dim=1)
    settled = second.exp() >= backtrack.sure
    # The only token that a position allows is no guess, whatever rounding makes of its share.
    guessed = (least < 1.0) & ~second.isnan() & ~refuted
    first = step.positions.masked_fill(~step.masked, canvas.length).amin(dim=1)
    ids = (broken | refuted, guessed, step.positions[at, slot], token, settled, other, first)
    known = torch.stack([least.double(), *(each.double() for each in ids)], dim=1).tolist()
    masked = canvas.masked(step.denoiser.facts.mask_id)
    guesses = [
        Guess(
            masked=masked[k, : canvas.lengths[k]],
            position=int(position),
            token=int(token),
            probability=probability,
            other=int(other) if settled else None,
            excluded=row.excluded,
            blocks=row.blocks,
            index=row.index,
            left=row.left,
            prefix=int(first),
        )
        if guess
        else None
        for k, (row, (probability, _, guess, position, token, settled, other, first)) in enumerate(
            zip(live, known, strict=True)
        )
    ]
    return Verdict(seen, backtrack, [bool(fact[1]) for fact in known], guesses)


def go_back(live: list[Row], state: BatchState, step: Step, move: Move, verdict: Verdict) -> Move:
    """Take back guesses in the rows that are wrong, on the canvas at once.

    Each row's ``returned`` tells which guess it came back to, if it did. What is left of the
    move is for the other rows; its remasks are what was taken back.
    """
    canvas, backtrack = state.canvas, verdict.backtrack
    mask_id, limit = step.denoiser.facts.mask_id, backtrack.limit
    returning = []
    for k, (row, guess) in enumerate(zip(live, verdict.guesses, strict=True)):
        row.returned = None
        if guess is not None and row.returns < limit:
            row.guesses.append(guess)
        if verdict.wrong[k] and row.can_go_back(limit):
            returning.append(k)
    if not returning:
        return move
    before = canvas.masked(mask_id)
    while returning:
        for k in returning:
            guess, ids = live[k].go_back(backtrack.sure), canvas.ids[k, : canvas.lengths[k]]
            ids.masked_fill_(guess.masked, mask_id)
            if guess.other is not None:
                ids[guess.position] = guess.other
        # What stood before a guess was not wrong: only the other token can be.
        broken = backtrack.checked()(canvas).tolist()
        returning = [k for k in returning if broken[k] and live[k].can_go_back(limit)]
    went = torch.tensor([row.returned is not None for row in live], device=before.device)
    ready: list[Ready | None] = [None] * len(live)
    earlier: dict[int, int] = {}
    for k, row in enumerate(live):
        if row.returned is None:
            continue
        if row.returns == limit:
            row.guesses.clear()
        if row.returned is not verdict.guesses[k]:
            earlier[k] = row.returned.blocks[0].start
        elif row.returned.other is None:
            ready[k] = ready_row(verdict.prediction, k, step.masked[k])
    if state.kept is not None and earlier:
        state.kept = state.kept.back_to(earlier)
    return replace(
        move,
        reveal=move.reveal & ~went.unsqueeze(1),
        remask=canvas.masked(mask_id) & ~before,
        ready=tuple(ready),
    )
