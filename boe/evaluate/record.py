"""One record per item, sampler and setting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from boe.decoding import TokensPerStep, generate
from boe.denoisers.base import Denoiser
from boe.samplers import sampler_from
from boe.tasks.base import Task, TaskItem


@dataclass(frozen=True)
class Record:
    """How one item went. Costs are those of :class:`boe.decoding.Account`."""

    item: int
    sampler: str
    tokens_per_step: int
    correct: bool
    answer: str
    steps: int
    nfe_forward: float
    n_backward: float
    flop_equiv: float
    seconds: float


def evaluate(
    denoiser: Denoiser,
    task: Task,
    items: list[TaskItem],
    sampler: str,
    tokens_per_step: int,
    *,
    seed: int = 0,
    temperature: float = 0.0,
    batch_size: int = 32,
) -> Iterator[Record]:
    """Decode and judge ``items``, a batch at a time, in order.

    Args:
        sampler: a name with options, as :func:`boe.samplers.sampler_from` takes it; it
            stands in the records as it is.
    """
    strategy = sampler_from(sampler)
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        generation = generate(
            denoiser,
            [item.canvas.to(denoiser.device) for item in batch],
            strategy,
            budget=TokensPerStep(tokens_per_step),
            temperature=temperature,
            seed=seed,
            item_ids=[item.number for item in batch],
        )
        for item, result in zip(batch, generation.items, strict=True):
            account = result.account
            yield Record(
                item=item.number,
                sampler=sampler,
                tokens_per_step=tokens_per_step,
                correct=task.judge(item, result.ids.cpu()),
                answer=task.answer(result.ids.cpu()),
                steps=account.steps,
                nfe_forward=account.nfe_forward,
                n_backward=account.n_backward,
                flop_equiv=account.flop_equiv,
                seconds=account.seconds,
            )
