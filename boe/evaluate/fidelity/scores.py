"""What samplers would rank by on a canvas: the first step of a decode, with its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from torch import Tensor

from boe.decoding import Budget, Item, generate
from boe.denoisers.base import Denoiser
from boe.samplers import BoE, Sampler, Strategy, sampler_from


@dataclass(frozen=True)
class FirstStep:
    """One canvas under one sampler.

    Attributes:
        scores: by masked position, what it ranks by; −∞ outside its candidates.
        parts: by name, what the scores were made of, by masked position.
        cost: in forwards, of this step.
    """

    scores: dict[int, float]
    parts: dict[str, dict[int, float]]
    cost: float


@dataclass(frozen=True)
class _OneThenRest(Budget):
    """One token, then all others: the shortest decode whose first step has a choice."""

    def plan(self, masks: int, blocks: int = 1) -> tuple[int, ...]:
        return (1, masks - 1) if masks > 1 else (1,)


def scoring_sampler(spec: str, candidates: str, rho: float) -> Sampler:
    """A sampler whose candidates are chosen as they are for all others.

    Raises:
        ValueError: it does not rank positions, or is more than a ranking.
    """
    policy = sampler_from(spec)
    if isinstance(policy, Strategy) or not isinstance(policy, Sampler):
        raise ValueError(f"scores must be samplers that rank positions, got {spec!r}")
    known = {field.name for field in fields(policy)}  # type: ignore[arg-type]
    common = {"candidates": candidates, "rho": rho, "tolerance": None, "sure": None}
    return replace(policy, **{k: v for k, v in common.items() if k in known})  # type: ignore[type-var]


def candidate_chooser(candidates: str, rho: float) -> Sampler:
    """The sampler whose candidates are everybody's."""
    return BoE(candidates=candidates, rho=rho, tolerance=None, sure=None, alpha=0.0)


def first_steps(
    denoiser: Denoiser,
    canvases: Sequence[Tensor],
    sampler: Sampler,
    numbers: Sequence[int],
    seed: int = 0,
) -> list[FirstStep]:
    """The first step of each canvas, all in one batch.

    Args:
        numbers: identify the canvases, for the draws of samplers that draw.
    """
    spent: dict[int, float] = {}

    def note(number: int, item: Item) -> None:
        spent.setdefault(number, item.account.flop_equiv)

    result = generate(
        denoiser,
        [canvas.to(denoiser.device) for canvas in canvases],
        sampler,
        budget=_OneThenRest(),
        seed=seed,
        item_ids=list(numbers),
        trajectory=True,
        on_step=note,
    )
    steps = []
    for number, item in enumerate(result.items):
        assert item.trajectory is not None
        record = item.trajectory[0]
        positions = record.positions.tolist()

        def by_position(values: Tensor, positions: list[int] = positions) -> dict[int, float]:
            return dict(zip(positions, values.double().tolist(), strict=True))

        steps.append(
            FirstStep(
                by_position(record.scores),
                {name: by_position(values) for name, values in record.parts.items()},
                spent[number],
            )
        )
    return steps
