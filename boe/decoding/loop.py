"""The decoding loop: canvas, eligibility, budget, token choice, stopping, accounting."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.decoding.budgets import Budget, TokensPerStep
from boe.decoding.records import Generation, Item, StepRecord
from boe.denoisers.base import Denoiser, Prediction
from boe.samplers import Sampler, sampler_from
from boe.samplers.base import Scores, Step, StepCost, top_positions
from boe_kernels import EntropyStats, entropy_stats, pad_rows


@dataclass
class _Row:
    """One sequence being decoded.

    Attributes:
        number: its place among the sequences; ``item_id`` seeds its random draws.
        masks: masks at the start.
        plan: (end of the block's positions, tokens to reveal) for each step left.
    """

    item: Item
    number: int
    item_id: int
    masks: int
    plan: list[tuple[int, int]]


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    canvas: Canvas | Tensor | Sequence[Tensor],
    sampler: Sampler | str = "boe",
    *,
    budget: Budget | None = None,
    block_length: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    item_ids: Sequence[int] | None = None,
    batch_size: int | None = None,
    trajectory: bool = False,
    on_step: Callable[[int, Item], None] | None = None,
) -> Generation:
    """Fill in the masked tokens of a canvas.

    Any pattern of masks is allowed, so infilling needs nothing special; tokens that are
    not masked never change, and neither do tokens once written.

    Args:
        denoiser: the model.
        canvas: sequences of int64 ids that hold the model's mask id, of any lengths, on
            the model's device.
        sampler: a sampler, or its name and options (:func:`boe.samplers.sampler_from`).
        budget: tokens per step; one by default.
        block_length: decode block by block from the first mask on (semi-autoregressive):
            only masks of the current block may be revealed.
        temperature: 0 writes the most probable token; above, tokens are drawn from
            softmax(z / temperature) by float64 Gumbel noise.
        seed: with ``item_ids`` fixes all random draws: a sequence gets the same draws
            whatever else is in its batch.
        item_ids: a number per sequence, by default 0, 1, 2 …
        batch_size: sequences decoded together; all by default.
        trajectory: keep a record of every step.
        on_step: called after each step for each sequence of the batch with its index
            and its item so far.

    Returns:
        Generation: one item per sequence, in order.

    Raises:
        ValueError: nothing to decode, a canvas that the model cannot take, or logits that
            are NaN or allow no token; the message names the sequence and position.
    """
    canvas = Canvas.of(canvas)
    sampler = sampler_from(sampler) if isinstance(sampler, str) else sampler
    budget = TokensPerStep(1) if budget is None else budget
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be finite and not negative, got {temperature}")
    if block_length is not None and block_length < 1:
        raise ValueError(f"block_length must be at least 1, got {block_length}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    item_ids = range(canvas.batch) if item_ids is None else item_ids
    if len(item_ids) != canvas.batch:
        raise ValueError(f"item_ids must number {canvas.batch} sequences, got {len(item_ids)}")
    _check_ids(denoiser, canvas)
    items: list[Item] = []
    size = batch_size or canvas.batch
    for start in range(0, canvas.batch, size):
        numbers = range(start, min(start + size, canvas.batch))
        part = canvas.select(numbers)
        masked = part.masked(denoiser.facts.mask_id).cpu()
        rows = [
            _Row(
                Item(ids, trajectory=[] if trajectory else None),
                number,
                item_ids[number],
                int(mask.sum()),
                _plan(mask, budget, block_length),
            )
            for number, ids, mask in zip(numbers, part.sequences(), masked, strict=True)
        ]
        _decode(denoiser, part, sampler, rows, temperature, seed, on_step)
        items += [row.item for row in rows]
    return Generation(items)


def _decode(
    denoiser: Denoiser,
    canvas: Canvas,
    sampler: Sampler,
    rows: list[_Row],
    temperature: float,
    seed: int,
    on_step: Callable[[int, Item], None] | None,
) -> None:
    """Run the rows' plans to their ends; finished rows leave the batch."""
    live = rows
    while live:
        staying = [k for k, row in enumerate(live) if row.plan]
        if len(staying) < len(live):
            for row, ids in zip(live, canvas.sequences(), strict=True):
                row.item.ids = ids
            live = [live[k] for k in staying]
            if not live:
                return
            canvas = canvas.select(staying)
        began = time.perf_counter()
        step, scores, revealed = _step(denoiser, canvas, sampler, live, temperature, seed)
        seconds = (time.perf_counter() - began) / len(live)
        _charge(live, canvas, scores.cost, seconds)
        for k, row in enumerate(live):
            if row.item.trajectory is not None:
                row.item.trajectory.append(_record(step, scores, revealed, k))
            if on_step is not None:
                row.item.ids = canvas.ids[k, : canvas.lengths[k]]
                on_step(row.number, row.item)


def _step(
    denoiser: Denoiser,
    canvas: Canvas,
    sampler: Sampler,
    live: list[_Row],
    temperature: float,
    seed: int,
) -> tuple[Step, Scores, Tensor]:
    """Predict, score, and write one step into ``canvas``; revealed is bool (B, P)."""
    device = canvas.ids.device
    ends = torch.tensor([row.plan[0][0] for row in live], device=device)
    budget = torch.tensor([row.plan[0][1] for row in live], device=device)
    left = [sum(count for _, count in row.plan) for row in live]
    positions = pad_rows(canvas.masked(denoiser.facts.mask_id))
    eligible = (positions >= 0) & (positions < ends.unsqueeze(1))
    # Rows whose eligible positions will all be revealed leave nothing to score.
    free = eligible.sum(dim=1) > budget
    any_free = bool(free.any())
    prediction = denoiser.predict(canvas, positions, sampler.keep if any_free else "nothing")
    stats = entropy_stats(prediction.logits)
    _check_stats(live, positions, stats)
    proposal, probability = _propose(
        prediction, stats, temperature, _generators(live, seed, "tokens", device)
    )
    remaining = torch.tensor(
        [n / row.masks for n, row in zip(left, live, strict=True)], device=device
    )
    step = Step(
        denoiser,
        canvas,
        prediction,
        stats,
        proposal,
        probability,
        eligible,
        budget,
        remaining,
        _generators(live, seed, "scores", device),
    )
    scores = sampler.score(step) if any_free else Scores(stats.top1)
    values = torch.where(free.unsqueeze(1), scores.values, stats.top1.to(scores.values.dtype))
    scored = free if scores.scored is None else free & scores.scored
    scores = replace(scores, values=values, scored=scored)
    revealed = top_positions(scores.values, eligible, budget)
    batch, slot = revealed.nonzero(as_tuple=True)
    canvas.ids[batch, positions[batch, slot]] = proposal[batch, slot]
    for row in live:
        row.plan.pop(0)
    return step, scores, revealed


def _plan(mask: Tensor, budget: Budget, block_length: int | None) -> list[tuple[int, int]]:
    """(end of the block, tokens to reveal) for every step that a row of masks takes."""
    positions = mask.nonzero().flatten().tolist()
    if not positions:
        return []
    if block_length is None:
        return [(positions[-1] + 1, count) for count in budget.plan(len(positions))]
    first = positions[0]
    blocks: dict[int, int] = {}
    for position in positions:
        block = (position - first) // block_length
        blocks[block] = blocks.get(block, 0) + 1
    return [
        (first + (block + 1) * block_length, count)
        for block, masks in blocks.items()
        for count in budget.plan(masks, len(blocks))
    ]


def _generators(
    live: list[_Row], seed: int, purpose: str, device: torch.device
) -> tuple[torch.Generator, ...]:
    """A generator per row that depends on the seed, item, step and purpose, and on no
    other row: the draws of a step cannot shift those of a later one."""
    generators = []
    for row in live:
        key = f"{seed}/{row.item_id}/{row.item.account.steps}/{purpose}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        generator = torch.Generator(device)
        generators.append(generator.manual_seed(int.from_bytes(digest) >> 1))
    return tuple(generators)


def _propose(
    prediction: Prediction,
    stats: EntropyStats,
    temperature: float,
    generators: tuple[torch.Generator, ...],
) -> tuple[Tensor, Tensor]:
    """The token that would be written at each position, and its untempered probability."""
    if temperature == 0.0:
        return stats.argmax, stats.top1
    logits = prediction.logits
    proposal = stats.argmax.clone()
    for row, generator in enumerate(generators):
        count = int((prediction.positions[row] >= 0).sum())
        z = logits[row, :count].double()
        # float32 noise would cut off the Gumbel tail and lower the temperature.
        noise = torch.rand(z.shape, generator=generator, dtype=torch.float64, device=z.device)
        gumbel = -(-noise.clamp_min(torch.finfo(torch.float64).tiny).log()).log()
        proposal[row, :count] = (z / temperature + gumbel).argmax(dim=-1)
    chosen = logits.gather(-1, proposal.unsqueeze(-1)).squeeze(-1)
    return proposal, (chosen - stats.logsumexp).exp()


def _check_ids(denoiser: Denoiser, canvas: Canvas) -> None:
    facts = denoiser.facts
    if canvas.ids.device != denoiser.device:
        raise ValueError(
            f"canvas must be on the model's device {denoiser.device}, got {canvas.ids.device}"
        )
    low, high = int(canvas.ids.min()), int(canvas.ids.max())
    if low < 0 or high >= facts.vocab_size:
        raise ValueError(
            f"canvas must hold ids in [0, {facts.vocab_size}), got {low if low < 0 else high}"
        )
    if not bool(canvas.masked(facts.mask_id).any()):
        raise ValueError(f"canvas holds no mask token (id {facts.mask_id}): nothing to decode")


def _check_stats(live: list[_Row], positions: Tensor, stats: EntropyStats) -> None:
    bad = stats.entropy.isnan() & (positions >= 0)
    if bool(bad.any()):
        row, slot = bad.nonzero()[0].tolist()
        raise ValueError(
            f"the model's logits for sequence {live[row].number}, position "
            f"{int(positions[row, slot])} are NaN or allow no token"
        )


def _charge(live: list[_Row], canvas: Canvas, cost: StepCost | None, seconds: float) -> None:
    for k, row in enumerate(live):
        account = row.item.account
        account.steps += 1
        account.seconds += seconds
        forwards = 1.0 + (0.0 if cost is None else float(cost.forwards[k]))
        account.nfe_forward += forwards
        account.flop_equiv += forwards
        if cost is not None:
            account.n_backward += float(cost.backwards[k])
            account.flop_equiv += float(cost.rows[k]) / canvas.lengths[k]


def _record(step: Step, scores: Scores, revealed: Tensor, row: int) -> StepRecord:
    masked = step.masked[row]
    scored = scores.scored is not None and bool(scores.scored[row])

    def kept(values: Tensor) -> Tensor:
        return values[row, masked].cpu()

    return StepRecord(
        positions=kept(step.positions),
        entropy=kept(step.stats.entropy),
        scores=kept(scores.values),
        parts={name: kept(values) for name, values in scores.parts.items()} if scored else {},
        revealed=step.positions[row, revealed[row]].cpu(),
        tokens=step.proposal[row, revealed[row]].cpu(),
    )
