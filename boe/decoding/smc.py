"""Sequential Monte Carlo without a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from boe.decoding.decoder import Decoder
from boe.decoding.particles import State, answer_of, copies_of, draw, to_barrier, total_of
from boe.decoding.records import Item
from boe.decoding.rows import Row
from boe.samplers.particles import SMC
from boe_kernels import entropy_stats


@dataclass
class Cloud:
    """The particles of one sequence, and their log-weights."""

    key: str
    particles: list[Row]
    log_weights: list[float]
    round: int = 0

    @property
    def done(self) -> bool:
        return all(row.done for row in self.particles)


def decode_smc(decoder: Decoder, rows: Sequence[Row], rule: SMC) -> list[Item]:
    """Each row's answer from its particles, in order."""
    decoder = replace(decoder, weighs=True)
    clouds = [Cloud(row.key, copies_of(row, rule, ""), [0.0] * rule.particles) for row in rows]
    while going := [cloud for cloud in clouds if not cloud.done]:
        before = {id(row): row.log_likelihood for c in going for row in c.particles}
        running = [row for cloud in going for row in cloud.particles if not row.done]
        to_barrier(decoder, running, rule.every)
        going = [cloud for cloud in going if not cloud.done]
        if rule.potential == "certainty":
            decoder.look([row for cloud in going for row in cloud.particles])
        for cloud in going:
            for k, row in enumerate(cloud.particles):
                if rule.potential == "certainty":
                    cloud.log_weights[k] = _certainty(decoder, row) / rule.temperature
                else:
                    cloud.log_weights[k] += row.log_likelihood - before[id(row)]
            resample(decoder, cloud, rule)
    items = []
    for cloud in clouds:
        best = max(cloud.particles, key=lambda row: row.log_likelihood)
        items.append(answer_of(best, total_of(cloud.particles)))
    return items


def _certainty(decoder: Decoder, row: Row) -> float:
    """Minus the mean entropy of the masked positions, nats; 0 where none is left."""
    if row.done or row.ready is None:
        return 0.0
    masked = row.item.ids[row.ready.positions] == decoder.mask_id
    entropy = entropy_stats(row.ready.logits).entropy[masked]
    return -float(entropy.double().mean()) if len(entropy) else 0.0


def resample(decoder: Decoder, cloud: Cloud, rule: SMC) -> None:
    cloud.round += 1
    weights = torch.tensor(cloud.log_weights, dtype=torch.float64).softmax(dim=0)
    if float(1.0 / weights.square().sum()) >= rule.ess * rule.particles:
        return
    key = f"{decoder.seed}/{cloud.key}/resample{cloud.round}"
    ancestors = draw(cloud.log_weights, rule.particles, key)
    states = [State.of(row) for row in cloud.particles]
    for row, ancestor in zip(cloud.particles, ancestors, strict=True):
        states[ancestor].restore(row)
    if rule.carry:
        carried = [cloud.log_weights[ancestor] for ancestor in ancestors]
        mean = sum(carried) / len(carried)
        cloud.log_weights = [weight - mean for weight in carried]
    else:
        cloud.log_weights = [0.0] * rule.particles
