"""Whole decodes by a real model, against each paper's procedure in a few lines of Python.

The procedures here know nothing of steps, masks by row or rankings: they fill in one sequence
with loops over positions, as the papers' pseudocode does. What they write, and how many
forwards they take, must be what the samplers write and take.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import boe
from boe.canvas import Canvas
from boe.samplers import PCSampler
from boe.tasks import TASKS

TASK = TASKS["countdown"]("hard")


class Model:
    """The task's denoiser on one sequence, counting its forwards."""

    def __init__(self) -> None:
        self.denoiser = TASK.denoiser()
        self.mask = self.denoiser.facts.mask_id
        self.forwards = 0

    def logits(self, ids: Tensor) -> Tensor:
        self.forwards += 1
        canvas = Canvas(ids[None], torch.tensor([len(ids)]))
        return self.denoiser.predict(canvas, torch.arange(len(ids))[None]).logits[0].double()

    def masks(self, ids: Tensor) -> list[int]:
        return [k for k, token in enumerate(ids.tolist()) if token == self.mask]


Procedure = Callable[[Model, Tensor], None]
"""Fills the masks of ids (L,) in, in place."""
Score = Callable[[Tensor], Tensor]
"""Scores (L,) from probabilities (L, V)."""


def surest(scores: Tensor, among: list[int], count: int) -> list[int]:
    return sorted(among, key=lambda k: (-float(scores[k]), k))[:count]


def confidence(p: Tensor) -> Tensor:
    return p.amax(dim=-1)


def margin(p: Tensor) -> Tensor:
    first, second = p.topk(2, dim=-1).values.unbind(dim=-1)
    return first - second


def entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(dim=-1)


def llada(score: Score, steps: int, block: int, guidance: float = 0.0) -> Procedure:
    """LLaDA's generate: blocks, front-loaded steps, unconditional logits ℓ_u + (w + 1)(ℓ − ℓ_u)."""

    def run(model: Model, ids: Tensor) -> None:
        start, first = ids.clone(), model.masks(ids)[0]
        blocks = math.ceil((len(ids) - first) / block)
        for number in range(blocks):
            low = first + number * block
            members = [k for k in model.masks(ids) if low <= k < low + block]
            n, t = len(members), steps // blocks
            for k in range(t):
                logits = model.logits(ids)
                if guidance:
                    blank = torch.where(start == model.mask, ids, model.mask)
                    free = model.logits(blank)
                    logits = free + (guidance + 1) * (logits - free)
                    logits = logits.nan_to_num(nan=-math.inf)
                p = logits.softmax(dim=-1)
                left = [j for j in members if ids[j] == model.mask]
                for j in surest(score(p), left, n // t + (k < n % t)):
                    ids[j] = p[j].argmax()

    return run


def one_rule(choose: Callable[[Tensor, list[int], list[Tensor]], list[int]]) -> Procedure:
    """Step by step whatever ``choose`` takes from p, the masks and the p of earlier steps."""

    def run(model: Model, ids: Tensor) -> None:
        before: list[Tensor] = []
        while masks := model.masks(ids):
            p = model.logits(ids).softmax(dim=-1)
            for k in choose(p, masks, before):
                ids[k] = p[k].argmax()
            before.append(p)

    return run


def eb(gamma: float) -> Procedure:
    def choose(p: Tensor, masks: list[int], before: list[Tensor]) -> list[int]:
        h = entropy(p)
        order = surest(-h, masks, len(masks))
        taken = order[:1]
        for k in order[1:]:
            values = [float(h[j]) for j in (*taken, k)]
            if sum(values) - max(values) > gamma:
                break
            taken.append(k)
        return taken

    return one_rule(choose)


def threshold(value: float) -> Procedure:
    def choose(p: Tensor, masks: list[int], before: list[Tensor]) -> list[int]:
        sure = [k for k in masks if confidence(p)[k] >= value]
        return sure or surest(confidence(p), masks, 1)

    return one_rule(choose)


def factor(f: float) -> Procedure:
    def choose(p: Tensor, masks: list[int], before: list[Tensor]) -> list[int]:
        order = surest(confidence(p), masks, len(masks))
        fits = [n for n, k in enumerate(order, 1) if confidence(p)[k] >= 1 - f / (n + 1)]
        return order[: max(fits, default=1)]

    return one_rule(choose)


def klass(least: float, bound: float, history: int = 2) -> Procedure:
    def choose(p: Tensor, masks: list[int], before: list[Tensor]) -> list[int]:
        recent = [torch.zeros_like(p), *before, p][-history - 1 :]
        divergences = [
            (now * ((now + 1e-12).log() - (then + 1e-12).log())).sum(dim=-1)
            for then, now in itertools.pairwise(recent)
        ]
        ready = [
            k
            for k in masks
            if len(before) >= history - 1
            and confidence(p)[k] > least
            and all(float(d[k]) < bound for d in divergences)
        ]
        return ready or surest(confidence(p), masks, 1)

    return one_rule(choose)


def pc(background: list[float], decay: float, clip: float) -> Procedure:
    frequency = torch.tensor(background, dtype=torch.float64)
    first = int((TASK.items(1, 0)[0].canvas == TASK.denoiser().facts.mask_id).nonzero()[0])

    def score(p: Tensor) -> Tensor:
        rare = -(frequency[p.argmax(dim=-1)] + 1e-9).log()
        fade = (-decay * (torch.arange(len(p)) - first).double()).exp()
        return fade * (confidence(p) * rare).clamp_max(clip)

    return llada(score, steps=4, block=10)


def p2(steps: int, eta: float) -> Procedure:
    def run(model: Model, ids: Tensor) -> None:
        free = model.masks(ids)
        seen, logits = None, None
        for step in range(1, steps + 1):
            # A forward on a canvas that did not change is the last one.
            if seen is None or not torch.equal(seen, ids):
                seen, logits = ids.clone(), model.logits(ids)
            log_p = logits.log_softmax(dim=-1)
            score = log_p.amax(dim=-1)
            score[ids != model.mask] *= eta
            kept = surest(score, free, len(free) - len(free) * (steps - step) // steps)
            for k in free:
                if k not in kept:
                    ids[k] = model.mask
                elif ids[k] == model.mask:
                    ids[k] = log_p[k].argmax()

    return run


def remdm_llada(ratio: float, loops: int) -> Procedure:
    def run(model: Model, ids: Tensor) -> None:
        free = model.masks(ids)

        def reveal() -> None:
            p = model.logits(ids).softmax(dim=-1)
            for k in surest(confidence(p), model.masks(ids), 1):
                ids[k] = p[k].argmax()

        for _ in range(int(ratio * len(free))):
            reveal()
        for _ in range(loops):
            p = model.logits(ids).softmax(dim=-1)
            written = [k for k in free if ids[k] != model.mask]
            ids[min(written, key=lambda k: (float(p[k, ids[k]]), k))] = model.mask
            reveal()
        while model.masks(ids):
            reveal()

    return run


def lookahead(rho: float) -> Procedure:
    """The fall of the other masks' entropy, by a forward per candidate."""

    def run(model: Model, ids: Tensor) -> None:
        while masks := model.masks(ids):
            p = model.logits(ids).softmax(dim=-1)
            candidates = surest(confidence(p), masks, max(1, math.ceil(rho * len(masks))))
            falls = torch.zeros(len(ids), dtype=torch.float64)
            for k in candidates if len(candidates) > 1 else []:
                tried = ids.clone()
                tried[k] = p[k].argmax()
                others = [j for j in masks if j != k]
                after = entropy(model.logits(tried).softmax(dim=-1))
                falls[k] = (entropy(p) - after)[others].sum()
            (best,) = surest(falls, sorted(candidates), 1)
            ids[best] = p[best].argmax()

    return run


def background() -> boe.BackgroundFrequencies:
    """Token v occurs v + 1 times."""
    size = TASK.denoiser().facts.vocab_size
    return boe.BackgroundFrequencies.of_ids([[v] * (v + 1) for v in range(size)], vocab_size=size)


def shares() -> list[float]:
    counts = range(1, TASK.denoiser().facts.vocab_size + 1)
    return [count / sum(counts) for count in counts]


FOUR, SIX = boe.FrontLoaded(4), boe.FrontLoaded(6)


@pytest.mark.parametrize(
    ("sampler", "procedure", "options"),
    [
        ("confidence", llada(confidence, 4, 10), {"budget": FOUR}),
        ("confidence", llada(confidence, 6, 5), {"budget": SIX, "block_length": 5}),
        ("margin", llada(margin, 6, 5), {"budget": SIX, "block_length": 5}),
        ("entropy", llada(lambda p: -entropy(p), 4, 10), {"budget": FOUR}),
        ("confidence", llada(confidence, 4, 10, 1.5), {"budget": FOUR, "guidance": 1.5}),
        ("eb:gamma=0.1", eb(0.1), {}),
        ("eb:gamma=2", eb(2.0), {}),
        ("threshold:value=0.5", threshold(0.5), {}),
        ("factor:factor=1", factor(1.0), {}),
        ("klass", klass(0.6, 0.015), {}),
        ("klass:confidence=0.3,divergence=0.2", klass(0.3, 0.2), {}),
        ("p2:steps=5,eta=1", p2(5, 1.0), {"temperature": 0.0}),
        ("p2:steps=10,eta=1.6", p2(10, 1.6), {"temperature": 0.0}),
        ("remdm-llada:ratio=0.8,loops=4", remdm_llada(0.8, 4), {}),
        ("lookahead:rho=0.6", lookahead(0.6), {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_sampler_writes_what_its_papers_procedure_writes_for_as_many_forwards(
    sampler: str, procedure: Procedure, options: dict[str, object]
) -> None:
    assert_alike(sampler, procedure, options)


def test_pc_sampler_writes_what_its_papers_procedure_writes() -> None:
    for decay, clip in ((0.25, 10.0), (0.1, 1.5)):
        sampler = PCSampler(background(), decay=decay, clip=clip)
        assert_alike(sampler, pc(shares(), decay, clip), {"budget": FOUR})


def assert_alike(sampler: object, procedure: Procedure, options: dict[str, object]) -> None:
    model = Model()
    for item in TASK.items(3, seed=3):
        model.forwards = 0
        ids = item.canvas.clone()
        procedure(model, ids)
        ours = boe.generate(model.denoiser, item.canvas, sampler, **options).items[0]
        assert ours.ids.tolist() == ids.tolist()
        assert ours.account.nfe_forward == model.forwards
