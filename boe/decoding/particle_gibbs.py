"""Particle Gibbs: conditional SMC towards a reward, sweep after sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from boe.decoding.decoder import Decoder
from boe.decoding.particles import State, answer_of, copies_of, draw, to_barrier, total_of
from boe.decoding.records import Account, Item
from boe.decoding.rows import Row
from boe.samplers.particles import ParticleGibbs
from boe.samplers.tokens import slot_seeds
from boe_kernels import sample_tokens


@dataclass
class _Lineage:
    """A particle's states at all barriers so far, and its estimated rewards there."""

    states: list[State] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    def at(self, barrier: int) -> tuple[State, float]:
        """The state at a barrier; a finished particle stays as it ended."""
        place = min(barrier, len(self.states) - 1)
        return self.states[place], self.rewards[place]

    def until(self, barrier: int) -> _Lineage:
        return _Lineage(self.states[:barrier], self.rewards[:barrier])


@dataclass
class _Chain:
    """The sweeps of one sequence.

    Attributes:
        kept: the trajectory kept from the last sweep; particle 0 follows it.
        lineages: one per particle of this sweep.
        spent: the particles of all sweeps, for the account.
        best: the largest reward of a completed sequence, and its particle's state.
    """

    row: Row
    particles: list[Row] = field(default_factory=list)
    lineages: list[_Lineage] = field(default_factory=list)
    kept: _Lineage | None = None
    spent: list[Row] = field(default_factory=list)
    best: tuple[float, State] | None = None
    barrier: int = 0

    def start(self, rule: ParticleGibbs, sweep: int) -> None:
        self.particles = copies_of(self.row, rule, f"sweep{sweep}/")
        self.lineages = [_Lineage() for _ in self.particles]
        self.spent += self.particles
        self.barrier = 0

    @property
    def moving(self) -> list[Row]:
        """Particles that are decoded: all but the one that follows the kept trajectory."""
        return self.particles[self.kept is not None :]

    @property
    def done(self) -> bool:
        return all(row.done for row in self.particles)


def decode_gibbs(decoder: Decoder, rows: Sequence[Row], rule: ParticleGibbs) -> list[Item]:
    """Each row's answer from its particles, in order."""
    assert rule.reward_fn is not None
    chains = [_Chain(row) for row in rows]
    for sweep in range(rule.sweeps):
        for chain in chains:
            chain.start(rule, sweep)
        while going := [chain for chain in chains if not chain.done]:
            running = [row for chain in going for row in chain.moving if not row.done]
            to_barrier(decoder, running, rule.every)
            decoder.look([row for chain in going for row in chain.moving])
            for chain in going:
                _weigh_anddraw(decoder, chain, rule, rule.reward_fn, sweep)
    items = []
    for chain in chains:
        account = _steps_of_sweeps(chain, rule)
        if chain.kept is None:  # nothing was masked
            items.append(chain.row.item)
            continue
        state = chain.kept.states[-1]
        if rule.answer == "best" and chain.best is not None:
            state = chain.best[1]
        answer = chain.particles[0]
        state.restore(answer)
        items.append(answer_of(answer, account))
    return items


def _steps_of_sweeps(chain: _Chain, rule: ParticleGibbs) -> Account:
    """All particles' costs; ``steps`` adds up the sweeps' longest trajectories."""
    total = total_of(chain.spent)
    size = rule.particles
    sweeps = [chain.spent[k : k + size] for k in range(0, len(chain.spent), size)]
    total.steps = sum(max(row.item.account.steps for row in sweep) for sweep in sweeps)
    return total


def _weigh_anddraw(
    decoder: Decoder,
    chain: _Chain,
    rule: ParticleGibbs,
    reward_fn: Callable[[Tensor], Tensor],
    sweep: int,
) -> None:
    """One barrier of one sequence: estimate rewards, then draw particles anew, or end."""
    previous = [lineage.rewards[-1] if lineage.rewards else 0.0 for lineage in chain.lineages]
    rewards: list[float] = []
    if chain.kept is not None:
        state, reward = chain.kept.at(chain.barrier)
        state.restore(chain.particles[0])
        rewards.append(reward)
    rewards += _estimates(decoder, chain.moving, rule, reward_fn)
    states = [State.of(row) for row in chain.particles]
    for lineage, state, reward in zip(chain.lineages, states, rewards, strict=True):
        # A trajectory that is kept for later sweeps need not hold its predictions.
        lineage.states.append(replace(state, ready=None))
        lineage.rewards.append(reward)
    chain.barrier += 1
    log_weights = [(r - p) / rule.beta for r, p in zip(rewards, previous, strict=True)]
    key = f"{decoder.seed}/{chain.row.key}/sweep{sweep}/resample{chain.barrier}"
    if chain.done:
        _note_best(chain, states, rewards)
        chain.kept = chain.lineages[draw(log_weights, 1, key)[0]]
        return
    fixed = len(chain.particles) - len(chain.moving)
    ancestors = [*range(fixed), *draw(log_weights, len(chain.moving), key)]
    lineages = [lineage.until(chain.barrier) for lineage in chain.lineages]
    for row, ancestor in zip(chain.particles, ancestors, strict=True):
        states[ancestor].restore(row)
    chain.lineages = [lineages[ancestor].until(chain.barrier) for ancestor in ancestors]


def _note_best(chain: _Chain, states: list[State], rewards: list[float]) -> None:
    for state, reward in zip(states, rewards, strict=True):
        if chain.best is None or reward > chain.best[0]:
            chain.best = (reward, state)


def _estimates(
    decoder: Decoder,
    rows: Sequence[Row],
    rule: ParticleGibbs,
    reward_fn: Callable[[Tensor], Tensor],
) -> list[float]:
    """r̂ of each row: the mean reward of its completions."""
    completed = torch.cat([_completions(decoder, row, rule.completions) for row in rows])
    rewards = reward_fn(completed)
    if not isinstance(rewards, Tensor) or rewards.shape != (len(completed),):
        got = tuple(rewards.shape) if isinstance(rewards, Tensor) else type(rewards).__name__
        raise ValueError(f"reward_fn must return a tensor ({len(completed)},), got {got}")
    if not bool(rewards.isfinite().all()):
        raise ValueError("reward_fn must return finite rewards")
    means: list[float] = rewards.double().view(len(rows), rule.completions).mean(dim=1).tolist()
    return means


def _completions(decoder: Decoder, row: Row, count: int) -> Tensor:
    """int64 (count, L): the sequence with its masks filled in by argmax, or by draws."""
    ids = row.item.ids.expand(count, -1).clone()
    if row.done or row.ready is None:
        return ids
    masked = row.item.ids[row.ready.positions] == decoder.mask_id
    positions, logits = row.ready.positions[masked], row.ready.logits[masked]
    if count == 1:
        ids[:, positions] = logits.argmax(dim=-1)
        return ids
    (generator,) = decoder.draws([row], "completions")
    seeds = slot_seeds(positions.expand(count, -1), [generator] * count)
    temperature = decoder.tokens.temperature or 1.0
    for number, own in enumerate(seeds):
        ids[number, positions] = sample_tokens(logits, own, temperature=temperature).token
    return ids
